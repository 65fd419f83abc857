//! Micro-benchmarks of what every request passes through: reading its URL, and verifying what was downloaded.

use std::hint::black_box;

use cachalot::oci::{Algorithm, Digest, Verifier, route};
use criterion::{BenchmarkId, Criterion, Throughput};

fn routes(criterion: &mut Criterion) {
    let digest = Digest::sha256(b"a layer");
    let encoded = digest.to_string().replace(':', "%3A");
    let urls = [
        ("ping", "/v2/".to_owned(), None),
        ("tag by ns", "/v2/library/nginx/manifests/1.27".to_owned(), Some("ns=docker.io")),
        ("blob by path", format!("/v2/docker.io/library/nginx/blobs/{digest}"), None),
        ("encoded blob by prefix", format!("/docker.io/v2/library/nginx/blobs/{encoded}"), Some("ns=docker.io")),
        ("not ours", "/favicon.ico".to_owned(), None),
    ];
    let mut group = criterion.benchmark_group("route");
    for (name, path, query) in &urls {
        group.bench_function(*name, |bencher| bencher.iter(|| route::parse(black_box(path), black_box(*query))));
    }
    group.finish();
}

fn verification(criterion: &mut Criterion) {
    let body = vec![0x5a; 1024 * 1024];
    let mut group = criterion.benchmark_group("verify");
    group.throughput(Throughput::Bytes(body.len() as u64));
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let digest = Digest::of(algorithm, &body);
        group.bench_with_input(BenchmarkId::from_parameter(algorithm), &digest, |bencher, digest| {
            bencher.iter(|| {
                let mut verifier = Verifier::new(*digest, Some(body.len() as u64));
                for chunk in body.chunks(256 * 1024) {
                    verifier.update(black_box(chunk));
                }
                verifier.finish()
            });
        });
    }
    group.finish();
    let text = Digest::sha256(b"a layer").to_string();
    criterion.bench_function("digest/from text", |bencher| bencher.iter(|| black_box(&text).parse::<Digest>()));
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    routes(&mut criterion);
    verification(&mut criterion);
    criterion.final_summary();
}

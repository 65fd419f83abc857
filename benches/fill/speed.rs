//! Cold downloads against direct ones.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::client::download;
use crate::mirror::Mirror;
use crate::report::{Line, Sample, ratio};
use crate::source::Part;
use crate::upstream::{Manner, Upstream};
use crate::{GIB, MIB, Proof, Result, blob_path, upstream_path};

/// A cold blob where upstream limits each connection.
pub(crate) fn limited(proof: &Proof) -> Result<Vec<Line>> {
    let upstream = Upstream::start(Manner { bytes_per_second: Some(50_000_000), ..Manner::default() })?;
    let (_, digest) = one_blob(proof, &upstream, GIB)?;
    let mut ratios = Vec::new();
    for number in 0..proof.pairs {
        let mut pair = [Duration::ZERO; 2];
        for turn in order(number) {
            pair[turn] = match turn {
                0 => download(upstream.addr(), &upstream_path(&digest), None)?.total,
                _ => cold(proof, &upstream, &digest)?,
            };
        }
        proof.say(&format!("pair {number}: direct {:.2?}, through the mirror {:.2?}", pair[0], pair[1]));
        ratios.push(ratio(pair[1], pair[0]));
    }
    let what = "cold 1 GiB, upstream at 50 MB/s a connection: time to direct";
    Ok(vec![Line::at_most(what, &Sample::new(ratios), 0.35, "")])
}

/// A cold blob from an upstream as fast as the loopback.
pub(crate) fn unlimited(proof: &Proof) -> Result<Vec<Line>> {
    let upstream = Upstream::start(Manner::default())?;
    let (part, digest) = one_blob(proof, &upstream, GIB)?;
    let (mut ratios, mut of_direct, mut of_hash) = (Vec::new(), Vec::new(), Vec::new());
    // The first pair warms what can be warmed, and isn't counted.
    for number in 0..=proof.pairs {
        let mut times = [Duration::ZERO; 3];
        for turn in order(number).into_iter().chain([2]) {
            times[turn] = match turn {
                0 => download(upstream.addr(), &upstream_path(&digest), None)?.total,
                1 => cold(proof, &upstream, &digest)?,
                _ => openssl(&part)?,
            };
        }
        let [direct, mirror, hash] = times;
        proof.say(&format!("pair {number}: direct {direct:.2?}, openssl {hash:.2?}, through the mirror {mirror:.2?}"));
        if number > 0 {
            ratios.push(ratio(mirror, direct.max(hash)));
            of_direct.push(ratio(mirror, direct));
            of_hash.push(ratio(mirror, hash));
        }
    }
    proof.say(&format!("to direct {}, to openssl {}", Sample::new(of_direct), Sample::new(of_hash)));
    let what = "cold 1 GiB, unlimited: time to max(direct, openssl sha256)";
    Ok(vec![Line::at_most(what, &Sample::new(ratios), 1.3, "")])
}

/// The first byte of cold blobs, large and small, beyond upstream's own.
pub(crate) fn first_byte(proof: &Proof) -> Result<Vec<Line>> {
    const COUNT: u64 = 50;
    let upstream = Upstream::start(Manner::default())?;
    let noise = Part::noise(proof.work, 1, GIB)?;
    let mut lines = Vec::new();
    for (size, what) in [
        (33 * MIB, "first byte of a cold 33 MiB blob beyond upstream's own"),
        (4 * MIB, "first byte of a cold 4 MiB blob beyond upstream's own"),
    ] {
        let mirror = Mirror::start(&upstream, proof.work, "20GiB")?;
        let mut beyond = Vec::new();
        for number in 0..COUNT {
            let part = noise.part(number * 16 * MIB, size);
            let digest = part.digest()?;
            let tag = format!("first-{size}-{number}");
            upstream.put(&tag, &digest, part);
            mirror.announce(&tag)?;
            let mut pair = [Duration::ZERO; 2];
            for turn in order(usize::try_from(number)?) {
                pair[turn] = match turn {
                    0 => download(upstream.addr(), &upstream_path(&digest), None)?.first_byte,
                    _ => download(mirror.addr(), &blob_path(&digest), None)?.first_byte,
                };
            }
            beyond.push((pair[1].as_secs_f64() - pair[0].as_secs_f64()) * 1000.0);
        }
        lines.push(Line::at_most(what, &Sample::new(beyond), 5.0, " ms"));
    }
    Ok(lines)
}

/// A blob of noise at `upstream`, under the tag `1`.
pub(crate) fn one_blob(proof: &Proof, upstream: &Upstream, size: u64) -> Result<(Part, String)> {
    let part = Part::noise(proof.work, 1, size)?;
    let digest = part.digest()?;
    upstream.put("1", &digest, part.clone());
    Ok((part, digest))
}

/// How long a blob takes through a mirror that holds nothing.
fn cold(proof: &Proof, upstream: &Upstream, digest: &str) -> Result<Duration> {
    let mirror = Mirror::start(upstream, proof.work, "4GiB")?;
    mirror.announce("1")?;
    Ok(download(mirror.addr(), &blob_path(digest), None)?.total)
}

fn openssl(part: &Part) -> Result<Duration> {
    let began = Instant::now();
    let output = Command::new("openssl").args(["dgst", "-sha256"]).arg(&part.path).output();
    let output = output.map_err(|error| format!("openssl can't be started ({error}): install it"))?;
    if output.status.success() { Ok(began.elapsed()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
}

/// Who is measured first, in turn.
fn order(number: usize) -> [usize; 2] {
    if number.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

//! Small ranges and probes of blobs that are not held.

use std::time::Duration;

use crate::client::{Connection, download};
use crate::mirror::Mirror;
use crate::report::{Line, Sample};
use crate::source::{Part, digest_of};
use crate::upstream::{Manner, Upstream};
use crate::{GIB, MIB, Proof, Result, blob_path, noise_number};

/// 200 random ranges of 50 kB on a cold blob of 2 GiB.
pub(crate) fn ranges(proof: &Proof) -> Result<Vec<Line>> {
    const COUNT: u64 = 200;
    const LEN: u64 = 50_000;
    const ROUND_TRIP: Duration = Duration::from_millis(50);
    let upstream = Upstream::start(Manner { delay: ROUND_TRIP, ..Manner::default() })?;
    let part = Part::noise(proof.work, 3, 2 * GIB)?;
    // Nothing is read to its end, so nothing compares it with its digest.
    let digest = digest_of(b"a blob of 2 GiB");
    upstream.put("1", &digest, part.clone());
    let mirror = Mirror::start(&upstream, proof.work, "8GiB")?;
    mirror.announce("1")?;
    let mut first_bytes = Vec::new();
    let mut connection = Connection::open(mirror.addr())?;
    for number in 0..COUNT {
        let first = noise_number(number) % (part.len - LEN);
        let range = format!("{first}-{}", first + LEN - 1);
        let began = std::time::Instant::now();
        let head = connection.ask(&blob_path(&digest), Some(&range))?;
        let mut bytes = connection.read(1)?;
        first_bytes.push(began.elapsed().as_secs_f64() / ROUND_TRIP.as_secs_f64());
        bytes.extend(connection.read(usize::MAX)?);
        if head.status != 206 || bytes != part.read(first, LEN)? {
            return Err(format!("status {} and wrong bytes for {range}", head.status).into());
        }
    }
    let sent = upstream.sent();
    let reserved = mirror.metric("cachalot_store_reserved_bytes")? + mirror.metric("cachalot_store_bytes")?;
    proof.say(&format!("{sent} bytes in {} requests; {reserved} bytes taken", upstream.blob_gets()));
    let slowest = first_bytes.iter().copied().fold(0.0, f64::max);
    proof.say(&format!("first byte in round trips of {ROUND_TRIP:?}: {}", Sample::new(first_bytes)));
    Ok(vec![
        Line::count("200 ranges of 50 kB on a cold 2 GiB blob: sent to asked", times(sent, COUNT * LEN), 10.0, ""),
        Line::count("  the slowest first byte, in upstream's round trips", slowest, 2.0, ""),
        Line::count("  share of the blob that room was taken for", reserved * 100.0 / gibibytes(2), 25.0, " %"),
    ])
}

/// 500 probes on as many cold blobs of 1 GiB, where there is room for 2 GiB and one is held.
pub(crate) fn probes(proof: &Proof) -> Result<Vec<Line>> {
    const COUNT: u64 = 500;
    let upstream = Upstream::start(Manner::default())?;
    let held = Part::noise(proof.work, 1, GIB)?;
    let digest = held.digest()?;
    upstream.put("held", &digest, held);
    let mirror = Mirror::start(&upstream, proof.work, "2GiB")?;
    mirror.announce("held")?;
    download(mirror.addr(), &blob_path(&digest), None)?;
    let zeros = Part::sparse(proof.work, GIB)?;
    let before = upstream.sent();
    for number in 0..COUNT {
        let cold = digest_of(&number.to_le_bytes());
        upstream.put(&format!("cold-{number}"), &cold, zeros.clone());
        // Half of the clients have read the manifest, as containers' clients do; the others probe at once.
        if number % 2 == 0 {
            mirror.announce(&format!("cold-{number}"))?;
        }
        let got = download(mirror.addr(), &blob_path(&cold), Some("0-1"))?;
        if got.bytes != 2 {
            return Err(format!("{} bytes for a probe", got.bytes).into());
        }
    }
    let sent = upstream.sent() - before;
    let asked = upstream.blob_gets();
    download(mirror.addr(), &blob_path(&digest), None)?;
    let asked_again = upstream.blob_gets() - asked;
    let evicted = mirror.metric("cachalot_evicted_bytes_total")?;
    proof.say(&format!("{sent} bytes sent for {COUNT} probes"));
    Ok(vec![
        Line::count("500 probes of cold 1 GiB blobs, room for 2 GiB: bytes evicted", evicted, 0.0, ""),
        Line::count("  requests for what was held before", times(asked_again, 1), 0.0, ""),
        Line::count("  sent a probe", times(sent, COUNT * MIB), 1.0, " MiB"),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "for a report")]
fn times(one: u64, other: u64) -> f64 {
    one as f64 / other as f64
}

#[expect(clippy::cast_precision_loss, reason = "for a report")]
fn gibibytes(count: u64) -> f64 {
    (count * GIB) as f64
}

//! Many readers of one cold blob.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Connection, download};
use crate::mirror::Mirror;
use crate::report::Line;
use crate::speed::one_blob;
use crate::upstream::{Manner, Upstream};
use crate::{GIB, MIB, Proof, Result, blob_path, noise_number};

/// Threads that only wait need little.
const STACK_BYTES: usize = 256 * 1024;

/// 100 readers of random ranges over one cold blob.
pub(crate) fn random(proof: &Proof) -> Result<Vec<Line>> {
    const SIZE: u64 = 256 * MIB;
    const READERS: u64 = 100;
    const ROUNDS: u64 = 10;
    let upstream = Upstream::start(Manner { bytes_per_second: Some(50_000_000), ..Manner::default() })?;
    let (part, digest) = one_blob(proof, &upstream, SIZE)?;
    let mirror = Mirror::start(&upstream, proof.work, "4GiB")?;
    mirror.announce("1")?;
    let read = AtomicU64::new(0);
    let reader = |reader: u64| -> std::result::Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        let mut connection = Connection::open(mirror.addr()).map_err(text)?;
        for round in 0..ROUNDS {
            let number = noise_number(reader * ROUNDS + round);
            let first = number % SIZE;
            // From 1 byte to 8 MiB, as many short ones as long ones.
            let last = (first + (noise_number(number) % (1 << (noise_number(number + 1) % 24)))).min(SIZE - 1);
            let head = connection.ask(&blob_path(&digest), Some(&format!("{first}-{last}"))).map_err(text)?;
            let bytes = connection.read(usize::MAX).map_err(text)?;
            if head.status != 206 || bytes != part.read(first, last + 1 - first).map_err(text)? {
                return Err(format!("status {} and wrong bytes for {first}-{last}", head.status));
            }
            read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    all(READERS, &reader)?;
    // Whatever is missing comes now.
    download(mirror.addr(), &blob_path(&digest), None)?;
    let sent = upstream.sent();
    proof.say(&format!(
        "{READERS} readers took {} MB; {sent} bytes in {} requests for {SIZE}",
        read.load(Ordering::Relaxed) / 1_000_000,
        upstream.blob_gets()
    ));
    let what = "100 readers of random ranges over a cold 256 MiB: sent to size";
    Ok(vec![Line::count(what, sent as f64 / SIZE as f64, 1.05, "")])
}

/// 1 000 readers of one blob that is being filled.
pub(crate) fn thousand(proof: &Proof) -> Result<Vec<Line>> {
    const READERS: u64 = 1000;
    let upstream = Upstream::start(Manner { bytes_per_second: Some(20_000_000), ..Manner::default() })?;
    let (part, digest) = one_blob(proof, &upstream, GIB)?;
    let mirror = Mirror::start(&upstream, proof.work, "4GiB")?;
    mirror.announce("1")?;
    // What a first connection costs is no reader's.
    download(mirror.addr(), &blob_path(&digest), Some("0-99999"))?;
    let before = mirror.memory()?;
    let most = AtomicU64::new(before);
    let taken = AtomicU64::new(0);
    let deadline = Instant::now() + Duration::from_secs(14);
    let reader = |number: u64| -> std::result::Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        let mut connection = Connection::open(mirror.addr()).map_err(text)?;
        connection.ask(&blob_path(&digest), None).map_err(text)?;
        let mut at = 0;
        // Each takes a piece now and then, for as long as the blob is being filled: all are behind its end.
        while Instant::now() < deadline {
            let bytes = connection.read(64 * 1024).map_err(text)?;
            if bytes != part.read(at, bytes.len() as u64).map_err(text)? {
                return Err(format!("wrong bytes at {at}"));
            }
            at += bytes.len() as u64;
            taken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(100 + number % 100));
        }
        Ok(())
    };
    let (filling, result) = thread::scope(|scope| {
        let readers = scope.spawn(|| all(READERS, &reader).map_err(|error| error.to_string()));
        let mut filling = 0.0;
        while !readers.is_finished() {
            most.fetch_max(mirror.memory().unwrap_or(0), Ordering::Relaxed);
            filling = mirror.metric("cachalot_fill_readers").map_or(filling, |now| f64::max(now, filling));
            thread::sleep(Duration::from_millis(100));
        }
        (filling, readers.join())
    });
    result.map_err(|_| "the readers died")??;
    let grown = most.load(Ordering::Relaxed).saturating_sub(before);
    proof.say(&format!(
        "{filling} readers of the fill at once took {} MB; memory from {} to {} MiB",
        taken.load(Ordering::Relaxed) / 1_000_000,
        before / MIB,
        (before + grown) / MIB
    ));
    if filling < READERS as f64 {
        return Err(format!("only {filling} readers followed the fill").into());
    }
    let what = "1 000 readers of a 1 GiB blob being filled: memory grows by";
    Ok(vec![Line::count(what, grown as f64 / MIB as f64, 150.0, " MiB")])
}

/// Runs so many at once, each on a thread of its own. The first failure is everyone's.
fn all(count: u64, work: &(impl Fn(u64) -> std::result::Result<(), String> + Sync)) -> Result<()> {
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..count {
            let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, move || work(number))?;
            threads.push(thread);
        }
        for thread in threads {
            thread.join().map_err(|_| "a reader died")??;
        }
        Ok(())
    })
}

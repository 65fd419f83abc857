//! Downloads that are broken off, by upstream or by the mirror's death.

use std::thread;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::client::Connection;
use crate::mirror::Mirror;
use crate::report::Line;
use crate::speed::one_blob;
use crate::upstream::{Manner, Upstream};
use crate::{MIB, Proof, Result, blob_path};

/// An upstream that ends each connection after 10 MB.
pub(crate) fn cuts(proof: &Proof) -> Result<Vec<Line>> {
    const SIZE: u64 = 300_000_000;
    let upstream = Upstream::start(Manner { cut_after: Some(10_000_000), ..Manner::default() })?;
    let (_, digest) = one_blob(proof, &upstream, SIZE)?;
    let mirror = Mirror::start(&upstream, proof.work, "4GiB")?;
    mirror.announce("1")?;
    let got = read(&mirror, &digest)?;
    if got != digest {
        return Err("the blob is not whole, or not right".into());
    }
    proof.say(&format!("{} requests, {} bytes for {SIZE}", upstream.blob_gets(), upstream.sent()));
    let twice = percent(upstream.sent() - SIZE, SIZE);
    Ok(vec![Line::count("300 MB over connections cut every 10 MB: sent twice", twice, 5.0, " %")])
}

/// A mirror that is killed in the middle of a download, and started again.
pub(crate) fn kill(proof: &Proof) -> Result<Vec<Line>> {
    const SIZE: u64 = 500_000_000;
    let upstream = Upstream::start(Manner { bytes_per_second: Some(40_000_000), ..Manner::default() })?;
    let (_, digest) = one_blob(proof, &upstream, SIZE)?;
    let mut mirror = Mirror::start(&upstream, proof.work, "4GiB")?;
    mirror.announce("1")?;
    let ended = thread::scope(|scope| {
        let client = scope.spawn(|| read(&mirror, &digest).map_err(|error| error.to_string()));
        while upstream.sent() < SIZE * 6 / 10 && !client.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        kill_by_id(&mirror)?;
        client.join().map_err(|_| "the client died")?.map_or(Ok(()), |_| Err("it was killed too late".into()))
    });
    let ended: Result<()> = ended;
    ended?;
    mirror.kill()?;
    let before = upstream.sent();
    mirror.restart()?;
    mirror.announce("1")?;
    let got = read(&mirror, &digest)?;
    if got != digest {
        return Err("wrong bytes after the restart".into());
    }
    let again = upstream.sent() - before;
    proof.say(&format!("{} MB before, {} MB after the restart", before / 1_000_000, again / 1_000_000));
    let what = "500 MB killed at 60 %, started again: sent again";
    Ok(vec![Line::count(what, percent(again, SIZE), 50.0, " %")])
}

/// Reads a blob to its end, and returns the digest of what came.
fn read(mirror: &Mirror, digest: &str) -> Result<String> {
    let mut connection = Connection::open(mirror.addr())?;
    let head = connection.ask(&blob_path(digest), None)?;
    if head.status != 200 {
        return Err(format!("status {}", head.status).into());
    }
    let mut hasher = Sha256::new();
    let mut left = head.length;
    while left > 0 {
        let bytes = connection.read(usize::try_from(left.min(MIB))?)?;
        hasher.update(&bytes);
        left -= bytes.len() as u64;
    }
    Ok(format!("sha256:{}", hex::encode(hasher.finalize())))
}

fn kill_by_id(mirror: &Mirror) -> Result<()> {
    let id = i32::try_from(mirror.id())?;
    let id = rustix::process::Pid::from_raw(id).ok_or("no process")?;
    Ok(rustix::process::kill_process(id, rustix::process::Signal::KILL)?)
}

#[expect(clippy::cast_precision_loss, reason = "for a report")]
fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole as f64
}

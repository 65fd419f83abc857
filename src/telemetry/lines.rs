//! The log's way out: lines wait in memory for one thread that writes them, so that no request waits for a disk or a pipe.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

use crate::tasks;

/// Lines on their way to a file or pipe. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// There is something to write, or somebody waits for it to be written.
    arrived: Condvar,
    /// What there was is written.
    written: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines for which there was no room.
    lost: u64,
    /// The thread has taken lines and is writing them.
    writing: bool,
    /// How many wait until everything is written.
    flushing: usize,
}

/// How long lines gather before they are written together: unnoticed by who watches, and thousands under load.
const GATHER: Duration = Duration::from_millis(50);

/// How much is written without waiting for more.
const ENOUGH_BYTES: usize = 256 << 10;

/// How much waits at most. Where the log is read that slowly, lines are dropped, and counted.
const WAITING_BYTES_MAX: usize = 4 << 20;

// === impl Lines ===

impl Lines {
    /// Starts the thread that writes lines to `out`.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let lines = Self::default();
        let inner = lines.0.clone();
        tasks::thread("log", move || inner.write_all_to(out))?;
        Ok(lines)
    }

    /// Waits until all that was logged so far is written, but no longer than `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let mut state = self.0.state.lock();
        state.flushing += 1;
        self.0.arrived.notify_one();
        let busy = |state: &mut State| state.writing || !state.waiting.is_empty() || state.lost > 0;
        // Out of time, what is left is lost: the program must end.
        let _ = self.0.written.wait_while_for(&mut state, busy, patience);
        state.flushing -= 1;
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.0.state.lock();
        if state.waiting.len() + line.len() > WAITING_BYTES_MAX {
            state.lost += 1;
            return;
        }
        let before = state.waiting.len();
        state.waiting.extend_from_slice(line);
        let after = state.waiting.len();
        drop(state);
        if before == 0 || (before < ENOUGH_BYTES && after >= ENOUGH_BYTES) {
            self.0.arrived.notify_one();
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Whoever formats lines writes each of them whole.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// === impl Inner ===

impl Inner {
    /// Never ends: a program's log is there as long as it is.
    fn write_all_to(&self, mut out: impl Write) {
        let mut lines = Vec::new();
        loop {
            let lost = self.take(&mut lines);
            if lost > 0 {
                let _ = writeln!(lines, "{lost} log lines were lost: they came faster than they were written");
            }
            // A log that can't be written has nowhere to say so.
            let _ = out.write_all(&lines).and_then(|()| out.flush());
            lines.clear();
            lines.shrink_to(ENOUGH_BYTES);
            let mut state = self.state.lock();
            state.writing = false;
            drop(state);
            self.written.notify_all();
        }
    }

    /// Waits for lines, and takes them; says how many were lost before them.
    fn take(&self, lines: &mut Vec<u8>) -> u64 {
        let mut state = self.state.lock();
        self.arrived.wait_while(&mut state, |state| state.waiting.is_empty() && state.lost == 0);
        let gathering = |state: &mut State| state.flushing == 0 && state.waiting.len() < ENOUGH_BYTES;
        let _ = self.arrived.wait_while_for(&mut state, gathering, GATHER);
        std::mem::swap(&mut state.waiting, lines);
        state.writing = true;
        std::mem::take(&mut state.lost)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Something that is written to, and says what; each write waits for leave.
    struct Gate {
        leave: mpsc::Receiver<()>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.leave.recv().map_err(io::Error::other)?;
            self.written.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gate() -> (Lines, mpsc::Sender<()>, mpsc::Receiver<Vec<u8>>) {
        let (give_leave, leave) = mpsc::channel();
        let (written, writes) = mpsc::channel();
        (Lines::start(Gate { leave, written }).unwrap(), give_leave, writes)
    }

    #[test]
    fn flushing_waits_for_every_line() {
        let (lines, give_leave, writes) = gate();
        // As many writes as there may be.
        (0..1000).for_each(|_| give_leave.send(()).unwrap());
        for n in 0..1000 {
            lines.push(format!("line {n}\n").as_bytes());
        }
        lines.flush(Duration::from_mins(10));
        let text = String::from_utf8(writes.try_iter().flatten().collect()).unwrap();
        assert!(text.lines().eq((0..1000).map(|n| format!("line {n}"))), "{text}");
    }

    #[test]
    fn whoever_logs_does_not_wait_for_a_log_that_hangs_and_what_is_lost_is_counted() {
        let (lines, give_leave, writes) = gate();
        let line = vec![b'x'; 1 << 20];
        // One batch may be on its way out, and another waits.
        for _ in 0..12 {
            lines.push(&line);
        }
        (0..1000).for_each(|_| give_leave.send(()).unwrap());
        lines.flush(Duration::from_mins(10));
        let text = String::from_utf8(writes.try_iter().flatten().collect()).unwrap();
        let kept = text.bytes().filter(|byte| *byte == b'x').count() >> 20;
        let lost = 12 - kept;
        assert!((4..=8).contains(&kept), "{kept}");
        assert!(text.contains(&format!("{lost} log lines were lost")), "{}", text.trim_matches('x'));
    }
}

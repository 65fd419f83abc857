//! The audit log: every change that someone makes and every decision about trust, on one target of its own.

use std::fmt::Display;

/// Who did something, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// A proven name, or what stands for one: `loopback`, `signal`, `file`.
    pub name: String,
    /// The address, if there is one.
    pub address: Option<String>,
}

// === impl Actor ===

impl Actor {
    /// Something on this machine that has no name of its own.
    pub fn local(what: &str) -> Self {
        Self { name: what.to_owned(), address: None }
    }
}

/// Notes that someone changed something, or tried to.
pub fn changed(event: &'static str, by: &Actor, subject: &str, before: &dyn Display, after: &dyn Display) {
    tracing::info!(
        target: "cachalot::audit",
        event,
        by = by.name,
        from = by.address,
        subject,
        %before,
        %after,
        "{event}: {subject}"
    );
}

/// Notes a decision not to trust something, or to go on trusting it although it could not be confirmed.
pub fn decided(event: &'static str, subject: &str, reason: &dyn Display) {
    tracing::warn!(target: "cachalot::audit", event, subject, %reason, "{event}: {subject}: {reason}");
}

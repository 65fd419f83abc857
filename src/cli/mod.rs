//! One file per command.

pub mod check_config;
pub mod demo;

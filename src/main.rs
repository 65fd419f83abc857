//! The `cachalot` program.
fn main() {}

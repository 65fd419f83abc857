//! What the commands that work on a stopped server's store share: which one, and how sizes are printed.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::app;
use crate::store::Store;

use super::{Settings, block_on, fail, fail_config};

/// Which store.
#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    /// Configuration file (TOML); also `CACHALOT_CONFIG`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// Opens the store, which no server may be using, runs `work` on it, and closes it.
pub(super) fn with_store(args: &StoreArgs, work: impl AsyncFnOnce(&Store) -> ExitCode) -> ExitCode {
    let settings = Settings { config: args.config.clone(), data: args.data.clone(), ..Settings::default() };
    let config = match settings.load() {
        Ok(config) => config,
        Err(errors) => return fail_config(&errors),
    };
    block_on(async {
        match app::open_alone(&config).await {
            Ok(store) => {
                let code = work(&store).await;
                store.close().await;
                code
            }
            Err(error) => fail(&error.to_string()),
        }
    })
}

/// A size as people read it.
pub(super) fn size(bytes: u64) -> String {
    let (mut tenths, mut unit) = (u128::from(bytes) * 10, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(3 << 40), "3.0 TiB");
    }
}

//! `cachalot pin` and `cachalot unpin`: promises that images stay.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::clock::Timestamp;
use crate::oci::ImageName;
use crate::store::{Pin, PinName, Store};

use super::fail;
use super::store::{StoreArgs, with_store};

/// The arguments of `pin`.
#[derive(Debug, Args)]
pub(super) struct PinArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The pin's name; without it, all pins are listed
    #[arg(requires = "images")]
    name: Option<PinName>,
    /// Images that stay, with all that belongs to them, also those that aren't held yet
    images: Vec<ImageName>,
    /// Of images for several platforms, keep only this one, such as linux/amd64; may be repeated
    #[arg(long, value_name = "PLATFORM")]
    platform: Vec<String>,
    /// Keep signatures and SBOMs as well
    #[arg(long)]
    referrers: bool,
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

/// The arguments of `unpin`.
#[derive(Debug, Args)]
pub(super) struct UnpinArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The pin's name
    name: PinName,
}

/// Runs `pin`.
pub(super) fn pin(args: &PinArgs) -> ExitCode {
    with_store(&args.store, async |store| {
        let Some(name) = &args.name else {
            list(store, args.json);
            return ExitCode::SUCCESS;
        };
        let pin = Pin {
            roots: args.images.clone(),
            platforms: args.platform.clone(),
            referrers: args.referrers,
            created: Timestamp::now(),
        };
        match store.pin(name, pin).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.to_string()),
        }
    })
}

/// Runs `unpin`.
pub(super) fn unpin(args: &UnpinArgs) -> ExitCode {
    with_store(&args.store, async |store| match store.unpin(&args.name).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => fail(&format!("there is no pin {}", args.name)),
        Err(error) => fail(&error.to_string()),
    })
}

#[expect(clippy::print_stdout, reason = "the list is what was asked for")]
fn list(store: &Store, as_json: bool) {
    let pins = store.pins();
    if as_json {
        let pins: serde_json::Map<_, _> = pins.iter().map(|(name, pin)| (name.to_string(), json!(pin))).collect();
        println!("{}", serde_json::Value::Object(pins));
        return;
    }
    for (name, pin) in pins {
        let roots: Vec<_> = pin.roots.iter().map(ToString::to_string).collect();
        println!("{name}  {}", roots.join(" "));
    }
}

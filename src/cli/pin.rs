//! `cachalot pin` and `cachalot unpin`: promises that images stay.

use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::json;

use crate::api_client::{ApiClientError, Page};
use crate::clock::Timestamp;
use crate::oci::ImageName;
use crate::store::{NamedPin, Pin, PinName};

use super::fail;
use super::store::{Place, StoreArgs, refused, with_store};

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
    with_store(&args.store, async |place| {
        let Some(name) = &args.name else {
            return match pins(place).await {
                Ok(pins) => list(&pins, args.json),
                Err(error) => refused(&error),
            };
        };
        let roots = match place.canonical(&args.images) {
            Ok(roots) => roots,
            Err(message) => return fail(&message),
        };
        let pin = Pin { roots, platforms: args.platform.clone(), referrers: args.referrers, created: Timestamp::now() };
        match place {
            Place::Stopped(store, _) => match store.pin(name, pin).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error.to_string()),
            },
            Place::Running(server) => {
                let wanted = json!({ "roots": pin.roots, "platforms": pin.platforms, "referrers": pin.referrers });
                let pinned: Result<NamedPin, _> =
                    server.send(Method::PUT, &format!("/pins/{name}"), Some(&wanted)).await;
                pinned.map_or_else(|error| refused(&error), |_| ExitCode::SUCCESS)
            }
        }
    })
}

/// Runs `unpin`.
pub(super) fn unpin(args: &UnpinArgs) -> ExitCode {
    with_store(&args.store, async |place| match place {
        Place::Stopped(store, _) => match store.unpin(&args.name).await {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => fail(&format!("there is no pin {}", args.name)),
            Err(error) => fail(&error.to_string()),
        },
        Place::Running(server) => {
            let path = format!("/pins/{}", args.name);
            let removed: Result<serde_json::Value, _> = server.send(Method::DELETE, &path, None::<&()>).await;
            removed.map_or_else(|error| refused(&error), |_| ExitCode::SUCCESS)
        }
    })
}

async fn pins(place: &Place) -> Result<Vec<NamedPin>, ApiClientError> {
    match place {
        Place::Stopped(store, _) => Ok(store.pins().into_iter().map(|(name, pin)| NamedPin { name, pin }).collect()),
        Place::Running(server) => Ok(server.get::<Page<NamedPin>>("/pins").await?.items),
    }
}

#[expect(clippy::print_stdout, reason = "the list is what was asked for")]
fn list(pins: &[NamedPin], as_json: bool) -> ExitCode {
    if as_json {
        let pins: serde_json::Map<_, _> = pins.iter().map(|pin| (pin.name.to_string(), json!(pin.pin))).collect();
        println!("{}", serde_json::Value::Object(pins));
        return ExitCode::SUCCESS;
    }
    for NamedPin { name, pin } in pins {
        let roots: Vec<_> = pin.roots.iter().map(ToString::to_string).collect();
        println!("{name}  {}", roots.join(" "));
    }
    ExitCode::SUCCESS
}

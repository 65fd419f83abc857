//! `cachalot have`: whether images are held to the last byte, for those who wait with a rollout until they are.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::api_client::{ApiClient, ApiClientError};
use crate::config::PlatformName;
use crate::jobs::seed::Wanted;
use crate::oci::ImageName;
use crate::store::Holding;

use super::seed::WantedArgs;
use super::store::{Place, StoreArgs, escape, refused, size, with_store};
use super::{EXIT_FAILURE, fail};

/// The arguments of `have`.
#[derive(Debug, Args)]
pub(super) struct Have {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    wanted: WantedArgs,
    /// Ask for nothing of signatures, attestations and SBOMs
    #[arg(long)]
    no_referrers: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command. Fails when anything is missing.
pub(super) fn run(args: &Have) -> ExitCode {
    let asked = match args.wanted.read() {
        Ok(asked) => asked,
        Err(message) => return fail(&message),
    };
    if asked.images.is_empty() {
        asked.say();
        return fail("there is nothing to look for: name images, or give --file or --from-manifests");
    }
    with_store(&args.store, async |place| {
        let images: Vec<_> = asked.images.iter().map(|wanted| wanted.image.clone()).collect();
        let images = match place.canonical_if_known(&images).into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(images) => images,
            Err(message) => return fail(&message),
        };
        let mut found = Vec::new();
        for (image, Wanted { platforms, .. }) in images.iter().zip(&asked.images) {
            match look(place, image, platforms, !args.no_referrers).await {
                Ok(holding) => found.push(holding),
                Err(code) => return code,
            }
        }
        print(&found, args.json);
        asked.say();
        let complete = found.iter().all(|holding| holding.complete);
        if complete && !asked.has_problems() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILURE) }
    })
}

async fn look(
    place: &Place,
    image: &ImageName,
    platforms: &[PlatformName],
    referrers: bool,
) -> Result<Holding, ExitCode> {
    let platforms: Vec<String> = platforms.iter().map(ToString::to_string).collect();
    match place {
        Place::Stopped(store, _) => {
            let found = store.holding(image, &platforms, referrers).await;
            found.map_err(|error| fail(&error.to_string()))
        }
        Place::Running(server) => ask(server, image, &platforms, referrers).await.map_err(|error| refused(&error)),
    }
}

async fn ask(
    server: &ApiClient,
    image: &ImageName,
    platforms: &[String],
    referrers: bool,
) -> Result<Holding, ApiClientError> {
    let (image, platforms) = (escape(&image.to_string()), escape(&platforms.join(",")));
    server.get(&format!("/have?image={image}&platforms={platforms}&referrers={referrers}")).await
}

#[expect(clippy::print_stdout, reason = "the report is what the command is for")]
fn print(found: &[Holding], as_json: bool) {
    if as_json {
        println!("{}", json!(found));
        return;
    }
    for holding in found {
        let Holding { image, digest, complete, held_bytes, missing, absent_platforms } = holding;
        match digest {
            None => println!("absent      {image}"),
            Some(digest) if *complete => println!("held        {image}@{digest} ({})", size(*held_bytes)),
            Some(digest) => {
                println!("incomplete  {image}@{digest} ({} held)", size(*held_bytes));
                for digest in missing {
                    println!("    missing {digest}");
                }
                for platform in absent_platforms {
                    println!("    nothing for {platform}");
                }
            }
        }
    }
}

//! `cachalot images` and `cachalot rm`: what is held, as people think of it, and the removal of what isn't wanted.

use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::json;

use crate::api_client::{ApiClient, ApiClientError, Page};
use crate::oci::ImageName;
use crate::store::{HeldImage, HeldLayer, Removed};

use super::store::{Place, StoreArgs, escape, refused, size, with_store};
use super::{EXIT_FAILURE, fail};

/// The arguments of `images`.
#[derive(Debug, Args)]
pub(super) struct Images {
    #[command(flatten)]
    store: StoreArgs,
    /// Show so many of the largest blobs as well
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    layers: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The arguments of `rm`.
#[derive(Debug, Args)]
pub(super) struct Rm {
    #[command(flatten)]
    store: StoreArgs,
    /// Images, such as nginx:1.27 or quay.io/a/b@sha256:…
    #[arg(required_unless_present = "unused")]
    images: Vec<ImageName>,
    /// Remove also all blobs that no image uses, such as those of an import that was interrupted
    #[arg(long)]
    unused: bool,
}

/// How many images a server is asked for at a time.
const PAGE: usize = 1000;

/// Runs `images`.
#[expect(clippy::print_stdout, reason = "the list is what the command is for")]
pub(super) fn list(args: &Images) -> ExitCode {
    with_store(&args.store, async |place| {
        let (images, layers) = match look(place, args.layers).await {
            Ok(found) => found,
            Err(code) => return code,
        };
        if args.json {
            println!("{}", json!({ "images": images, "layers": layers }));
            return ExitCode::SUCCESS;
        }
        table(&images);
        if !layers.is_empty() {
            println!("\nLARGEST BLOBS");
        }
        for layer in layers {
            let images: Vec<_> = layer.images.iter().map(ToString::to_string).collect();
            println!("{:>10}  {}  {}", size(layer.size_bytes), layer.digest, images.join(" "));
        }
        ExitCode::SUCCESS
    })
}

async fn look(place: &Place, layers: usize) -> Result<(Vec<HeldImage>, Vec<HeldLayer>), ExitCode> {
    match place {
        Place::Stopped(store, _) => match store.images().await {
            Ok(images) => Ok((images, store.largest_layers(layers).await)),
            Err(error) => Err(fail(&error.to_string())),
        },
        Place::Running(server) => ask(server, layers).await.map_err(|error| refused(&error)),
    }
}

async fn ask(server: &ApiClient, layers: usize) -> Result<(Vec<HeldImage>, Vec<HeldLayer>), ApiClientError> {
    let (mut images, mut after) = (Vec::new(), String::new());
    loop {
        let page: Page<HeldImage> = server.get(&format!("/images?limit={PAGE}&after={}", escape(&after))).await?;
        images.extend(page.items);
        match page.next {
            // Each page ends behind the one before, or there would be no end.
            Some(next) if next > after => after = next,
            _ => break,
        }
    }
    if layers == 0 {
        return Ok((images, Vec::new()));
    }
    let layers: Page<HeldLayer> = server.get(&format!("/layers?limit={}", layers.min(PAGE))).await?;
    Ok((images, layers.items))
}

#[expect(clippy::print_stdout, reason = "the list is what the command is for")]
fn table(images: &[HeldImage]) {
    let name = |image: &HeldImage| image.image.to_string();
    let width = images.iter().map(|image| name(image).len()).max().unwrap_or(0).max(5);
    println!("{:width$}  {:>10}  {:>10}  {:>9}  PLATFORMS, STATE", "IMAGE", "SIZE", "SHARED", "USED");
    for image in images {
        let mut notes = vec![image.platforms.join(" ")];
        if !image.complete {
            notes.push("incomplete".to_owned());
        }
        if !image.pins.is_empty() {
            let pins: Vec<_> = image.pins.iter().map(ToString::to_string).collect();
            notes.push(format!("pinned by {}", pins.join(" ")));
        }
        notes.retain(|note| !note.is_empty());
        let used = image.last_used.age().map_or_else(|| "-".to_owned(), ago);
        let (name, notes) = (name(image), notes.join(", "));
        println!("{name:width$}  {:>10}  {:>10}  {used:>9}  {notes}", size(image.size_bytes), size(image.shared_bytes));
    }
}

fn ago(age: std::time::Duration) -> String {
    match age.as_secs() {
        seconds if seconds < 120 => format!("{seconds} s ago"),
        seconds if seconds < 7200 => format!("{} m ago", seconds / 60),
        seconds if seconds < 172_800 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} d ago", seconds / 86_400),
    }
}

/// Runs `rm`.
#[expect(clippy::print_stdout, reason = "what was freed is what people want to know")]
pub(super) fn remove(args: &Rm) -> ExitCode {
    with_store(&args.store, async |place| {
        let mut code = ExitCode::SUCCESS;
        for image in place.canonical_if_known(&args.images) {
            let image = &match image {
                Ok(image) => image,
                Err(message) => {
                    code = fail(&message);
                    continue;
                }
            };
            let removed = match place {
                Place::Stopped(store, _) => store.remove_image(image).await.map_err(|error| fail(&error.to_string())),
                Place::Running(server) => {
                    let path = format!("/images?image={}", escape(&image.to_string()));
                    let removed = server.send::<Removed>(Method::DELETE, &path, None::<&()>).await;
                    removed.map_err(|error| refused(&error))
                }
            };
            match removed {
                Ok(removed) => {
                    println!("removed {image}: {} freed, {} blobs", size(removed.freed_bytes), removed.blobs);
                }
                Err(_) => code = ExitCode::from(EXIT_FAILURE),
            }
        }
        if args.unused {
            let removed = match place {
                Place::Stopped(store, _) => store.remove_unused().await,
                Place::Running(server) => match server.send(Method::DELETE, "/layers", None::<&()>).await {
                    Ok(removed) => removed,
                    Err(error) => return refused(&error),
                },
            };
            println!("removed what no image uses: {} freed, {} blobs", size(removed.freed_bytes), removed.blobs);
        }
        code
    })
}

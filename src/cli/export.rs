//! `cachalot export`: held images become a bundle.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use http::Method;
use serde_json::json;

use crate::api_client::{ApiClient, ApiClientError, Download};
use crate::bundle::{BundleError, Destination, Exported, Progress, Wanted, export, receive};
use crate::config::PlatformName;
use crate::oci::ImageName;
use crate::store::PinName;

use super::fail;
use super::store::{Place, StoreArgs, bar, refused, show_bundle, size, unless_interrupted, with_store};

/// The arguments of `export`.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub(super) struct Export {
    #[command(flatten)]
    store: StoreArgs,
    /// Images, such as nginx:1.27 or quay.io/a/b@sha256:…
    #[arg(required_unless_present = "pin")]
    images: Vec<ImageName>,
    /// Export all images that this pin keeps
    #[arg(long, value_name = "NAME")]
    pin: Option<PinName>,
    /// Where the bundle goes: a file, a folder (with a slash at its end), or - for the standard output
    #[arg(short, long, value_name = "FILE|DIR/|-")]
    output: PathBuf,
    /// A tar archive or a folder; told from the output's name if it isn't said
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Of images for several platforms, export only these, such as linux/amd64,linux/arm64
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<PlatformName>,
    /// Leave signatures, SBOMs and whatever else refers to the images behind
    #[arg(long)]
    no_referrers: bool,
    /// Print what was exported as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Tar,
    Dir,
}

const HELP: &str = "\
The bundle is an OCI image layout. `cachalot import`, `ctr images import`, `docker load`, `podman load` and `skopeo copy
oci-archive:FILE:TAG` take it; podman, and docker without its containerd image store, load several images of a bundle only
if each of them is for one platform. The same images always make the same bytes. An image for several
platforms keeps its digest; of its platforms those travel that are held, and one that is held only in part is refused.
Signatures and the like travel in the bundle too, listed in a file of their own (referrers.json) that only Cachalot reads.";

/// Runs the command.
pub(super) fn run(args: &Export) -> ExitCode {
    with_store(&args.store, async |place| {
        let images = match place.canonical_if_known(&args.images).into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(images) => images,
            Err(message) => return fail(&message),
        };
        let wanted = Wanted {
            images,
            pin: args.pin.clone(),
            platforms: args.platform.iter().map(ToString::to_string).collect(),
            referrers: !args.no_referrers,
        };
        let destination = match args.destination() {
            Ok(destination) => destination,
            Err(message) => return fail(&message),
        };
        let bar = bar();
        let show = |progress: &Progress| show_bundle(&bar, progress);
        let exporting = async {
            match place {
                Place::Stopped(store, _) => export(store, &wanted, destination, &show).await.map_err(Failed::Here),
                Place::Running(server) => fetch(server, &wanted, destination, &show).await,
            }
        };
        let exported = unless_interrupted(exporting).await;
        bar.finish_and_clear();
        match exported {
            Some(Ok(exported)) => {
                print(&exported, args);
                ExitCode::SUCCESS
            }
            Some(Err(failed)) => failed.tell(),
            None => fail("interrupted; nothing was exported"),
        }
    })
}

/// Why nothing was exported.
enum Failed {
    Here(BundleError),
    There(ApiClientError),
    OnTheWay(BundleError),
    /// A tag moved, or something was removed, between two questions.
    Changed,
}

/// Has a server that uses the store write the bundle.
async fn fetch(
    server: &ApiClient,
    wanted: &Wanted,
    destination: Destination,
    show: &(dyn Fn(&Progress) + Send + Sync),
) -> Result<Exported, Failed> {
    let exported: Exported = server.send(Method::POST, "/exports/plan", Some(wanted)).await.map_err(Failed::There)?;
    let Download { etag, size_bytes, bytes } = server.download("/exports", wanted).await.map_err(Failed::There)?;
    if etag != Some(exported.sums.to_string()) {
        return Err(Failed::Changed);
    }
    receive(bytes, size_bytes, destination, show).await.map_err(Failed::OnTheWay)?;
    Ok(exported)
}

/// Tells what travels: people on the standard error, for the output may be the bundle.
#[expect(clippy::print_stderr, clippy::print_stdout, reason = "the standard output may be the bundle")]
fn print(exported: &Exported, args: &Export) {
    if args.json {
        let exported = json!(exported);
        return if args.is_stdout() { eprintln!("{exported}") } else { println!("{exported}") };
    }
    for image in &exported.images {
        let mut notes = vec![image.digest.to_string()];
        notes.extend((!image.platforms.is_empty()).then(|| image.platforms.join(" ")));
        notes.extend((!image.left_out.is_empty()).then(|| format!("(not held: {})", image.left_out.join(" "))));
        eprintln!("{}  {}", image.image, notes.join("  "));
    }
    for name in &exported.referrers {
        eprintln!("{name}  refers to them");
    }
    for name in &exported.left_behind {
        eprintln!("{name}  refers to them, but is not all held, and stays behind");
    }
    let output = if args.is_stdout() { "the standard output".to_owned() } else { args.output.display().to_string() };
    eprintln!("{} blobs, {}, in {output}", exported.blobs, size(exported.bytes));
    if !exported.for_old_docker {
        eprintln!(
            "docker without its containerd image store can't load this bundle: not all in it are images for one platform"
        );
    }
}

// === impl Failed ===

impl Failed {
    fn tell(&self) -> ExitCode {
        match self {
            Self::OnTheWay(error @ BundleError::Stream(_)) => {
                fail(&format!("{error}; nothing was exported, and the server's log says why, if it knows"))
            }
            Self::Here(error) | Self::OnTheWay(error) => fail(&error.to_string()),
            Self::There(error) => refused(error),
            Self::Changed => fail("what was asked for has just changed; nothing was exported, run it again"),
        }
    }
}

// === impl Export ===

impl Export {
    fn is_stdout(&self) -> bool {
        self.output == Path::new("-")
    }

    fn destination(&self) -> Result<Destination, String> {
        let path = self.output.clone();
        let like_a_folder = path.as_os_str().to_string_lossy().ends_with('/') || path.is_dir();
        match self.format {
            Some(Format::Dir) if self.is_stdout() => Err("a folder can't go to the standard output".to_owned()),
            Some(Format::Tar) if like_a_folder => Err(format!("{} is a folder; name a file in it", path.display())),
            _ if self.is_stdout() => Ok(Destination::Stdout),
            Some(Format::Dir) => Ok(Destination::Folder(path)),
            None if like_a_folder => Ok(Destination::Folder(path)),
            Some(Format::Tar) | None => Ok(Destination::File(path)),
        }
    }
}

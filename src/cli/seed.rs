//! `cachalot seed`: images fetched ahead of time, from names, lists and Kubernetes manifests.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Method;

use crate::api_client::{ApiClient, ApiClientError};
use crate::app;
use crate::config::PlatformName;
use crate::files;
use crate::jobs::lists;
use crate::jobs::seed::{Begun, Progress, Request, Wanted, Watch, seed};
use crate::oci::ImageName;
use crate::store::PinName;
use crate::workloads::{self, Found};

use super::seed_report::Display;
use super::store::{Place, StoreArgs, refused, with_store_or_new};
use super::{EXIT_FAILURE, fail};

/// The arguments of `seed`.
#[derive(Debug, Args)]
pub(super) struct Seed {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    wanted: WantedArgs,
    /// Leave out signatures, attestations and SBOMs
    #[arg(long)]
    no_referrers: bool,
    /// Keep the images whatever else finds no room, under this name
    #[arg(long, value_name = "NAME")]
    pin: Option<PinName>,
    /// Say what would be fetched and how much that is, and fetch nothing
    #[arg(long)]
    dry_run: bool,
    /// Watch a run of a running server that was begun before
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["images", "file", "from_manifests", "pin", "dry_run"])]
    watch: Option<u64>,
    /// Print JSON at the end
    #[arg(long)]
    json: bool,
}

/// Which images, for `seed` and `have`.
#[derive(Debug, Args)]
pub(super) struct WantedArgs {
    /// Images, such as nginx:1.27 or quay.io/a/b@sha256:…
    images: Vec<ImageName>,
    /// List of images, one a line, maybe with platforms behind it (linux/amd64,linux/arm64), and comments (#); - for
    /// standard input
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Kubernetes manifests: a file, a folder of .yaml, .yml and .json, or - for standard input (helm template …, kubectl
    /// get pods -A -o json)
    #[arg(long, value_name = "PATH")]
    from_manifests: Vec<PathBuf>,
    /// A further place for images in manifests, such as spec.images.*.name
    #[arg(long, value_name = "FIELDS")]
    image_path: Vec<workloads::Path>,
    /// Platforms, such as linux/amd64,linux/arm64, or all; what this machine runs if none is given
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<String>,
}

/// No list and no manifest is larger.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Folders are not nested deeper.
const FOLDERS_DEPTH_MAX: usize = 16;

/// How often a server is asked how far it has come, and the bars are drawn.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Runs the command. Fails when anything is missing.
pub(super) fn run(args: &Seed) -> ExitCode {
    let found = match args.wanted.read() {
        Ok(found) => found,
        Err(message) => return fail(&message),
    };
    if found.images.is_empty() && args.watch.is_none() {
        found.say();
        return fail("there is nothing to fetch: name images, or give --file or --from-manifests");
    }
    let mut request = Request {
        images: found.images.clone(),
        no_referrers: args.no_referrers,
        pin: args.pin.clone(),
        dry_run: args.dry_run,
        replaces_pin: false,
    };
    with_store_or_new(&args.store, true, async |place| {
        let display = Display::new(args.json, args.dry_run);
        let progress = match (place, args.watch) {
            (Place::Stopped(..), Some(_)) => return fail("no server runs, so there is no run to watch"),
            (Place::Stopped(store, config), None) => {
                let (mirror, fills) = match app::mirror_alone(config, store) {
                    Ok(parts) => parts,
                    Err(error) => return fail(&error.to_string()),
                };
                if let Err(error) = request.name_canonically(mirror.names()) {
                    return fail(&error.to_string());
                }
                let watch = Watch::new(&request);
                let mut ticks = tokio::time::interval(LOOK_EVERY);
                let seeding = seed(&mirror, store, &request, &watch);
                tokio::pin!(seeding);
                loop {
                    tokio::select! {
                        () = &mut seeding => break,
                        _ = ticks.tick() => display.show(&watch.progress()),
                    }
                }
                mirror.stop().await;
                fills.stop().await;
                watch.progress()
            }
            (Place::Running(server), number) => match follow(server, number, &request, &display).await {
                Ok(progress) => progress,
                Err(error) => return refused(&error),
            },
        };
        display.end(&progress);
        found.say();
        if progress.is_complete() && !found.has_problems() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILURE) }
    })
}

/// Has a server do it, and follows it. The server goes on when this ends.
async fn follow(
    server: &ApiClient,
    number: Option<u64>,
    request: &Request,
    display: &Display,
) -> Result<Progress, ApiClientError> {
    let number = if let Some(number) = number {
        number
    } else {
        let begun: Begun = server.send(Method::POST, "/seeds", Some(request)).await?;
        display.say(&format!("the server fetches them; if this ends early: cachalot seed --watch {}", begun.number));
        begun.number
    };
    loop {
        let progress: Progress = server.get(&format!("/seeds/{number}")).await?;
        display.show(&progress);
        if !progress.running {
            return Ok(progress);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What was asked for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) images: Vec<Wanted>,
    /// Texts that look like images and were not taken.
    look_alikes: Vec<String>,
    /// What stands where an image should and names none.
    problems: Vec<String>,
}

// === impl Asked ===

impl Asked {
    /// Tells what was not taken.
    #[expect(clippy::print_stderr, reason = "this is where commands talk to the person who typed them")]
    pub(super) fn say(&self) {
        if !self.look_alikes.is_empty() {
            eprintln!("these look like images and were not taken; --image-path takes more places:");
            for text in &self.look_alikes {
                eprintln!("  {text}");
            }
        }
        for problem in &self.problems {
            eprintln!("cachalot: {problem}");
        }
    }

    /// Whether something stands where an image should and names none.
    pub(super) fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    fn add(&mut self, image: ImageName, platforms: &[PlatformName]) {
        match self.images.iter_mut().find(|wanted| wanted.image == image) {
            None => self.images.push(Wanted { image, platforms: platforms.to_vec() }),
            // Asked for twice: for all of these platforms, and no platform is all.
            Some(known) if known.platforms.is_empty() || platforms.is_empty() => known.platforms.clear(),
            Some(known) => {
                let more = platforms.iter().filter(|platform| !known.platforms.contains(platform)).cloned();
                let more: Vec<_> = more.collect();
                known.platforms.extend(more);
            }
        }
    }
}

// === impl WantedArgs ===

impl WantedArgs {
    /// Reads all that was named. The error says which file is wrong, and where.
    pub(super) fn read(&self) -> Result<Asked, String> {
        let platforms = platforms(&self.platform.iter().map(String::as_str).collect::<Vec<_>>())?;
        let mut asked = Asked::default();
        for image in &self.images {
            asked.add(image.clone(), &platforms);
        }
        for path in &self.file {
            let listed = lists::read(&path.display().to_string(), &read_text(path)?, &platforms);
            for Wanted { image, platforms } in listed.map_err(|error| error.to_string())? {
                asked.add(image, &platforms);
            }
        }
        let mut found = Found::default();
        for path in &self.from_manifests {
            self.read_manifests(&mut found, path, 0)?;
        }
        let found = found.done();
        for image in found.images.into_values() {
            asked.add(image, &platforms);
        }
        asked.look_alikes = found.look_alikes.into_iter().map(|(text, place)| format!("{text}  in {place}")).collect();
        asked.problems = found.invalid;
        Ok(asked)
    }

    fn read_manifests(&self, found: &mut Found, path: &Path, depth: usize) -> Result<(), String> {
        if path.is_dir() {
            if depth > FOLDERS_DEPTH_MAX {
                return Err(format!("{}: folders are nested too deep", path.display()));
            }
            for entry in files::entries(path).map_err(|error| error.to_string())? {
                let is_manifest = entry
                    .extension()
                    .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known));
                if entry.is_dir() || is_manifest {
                    self.read_manifests(found, &entry, depth + 1)?;
                }
            }
            return Ok(());
        }
        let name = path.display().to_string();
        found.read(&name, &read_text(path)?, &self.image_path).map_err(|error| error.to_string())
    }
}

/// Platforms as they are written; what this machine runs if none is, and none for all.
fn platforms(written: &[&str]) -> Result<Vec<PlatformName>, String> {
    if written.is_empty() {
        return Ok(vec![PlatformName {
            os: "linux".to_owned(),
            architecture: architecture().to_owned(),
            variant: None,
        }]);
    }
    lists::platforms(written)
}

/// This machine's architecture, by the names that images have for them.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    if path != Path::new("-") {
        return files::read_text(path, FILE_BYTES_MAX).map_err(|error| error.to_string());
    }
    let mut text = String::new();
    match std::io::stdin().lock().take(FILE_BYTES_MAX).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(format!("standard input can't be read: {error}")),
    }
}

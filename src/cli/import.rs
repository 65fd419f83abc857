//! `cachalot import`: a bundle becomes held images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use futures_util::TryStreamExt as _;
use http::Method;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::api_client::{ApiClient, ApiClientError};
use crate::app;
use crate::bundle::{BundleError, Canonical, Imported, Options, Progress, Source, import, pin_name, send};
use crate::config::Config;
use crate::oci::{RegistryName, Repository};
use crate::store::{PinName, Store};

use super::fail;
use super::store::{Place, StoreArgs, bar, escape, refused, show_bundle, size, unless_interrupted, with_store_or_new};

/// The arguments of `import`.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that people type")]
pub(super) struct Import {
    #[command(flatten)]
    store: StoreArgs,
    /// A tar archive (plain, gzip or zstd), a folder, or - for the standard input
    #[arg(value_name = "FILE|DIR|-")]
    source: PathBuf,
    /// Name of the pin that keeps the images, beside what it keeps already; else it is named after the file
    #[arg(long, value_name = "NAME", conflicts_with = "no_pin")]
    pin: Option<PinName>,
    /// Don't keep the images: they go when room is needed, as all else
    #[arg(long)]
    no_pin: bool,
    /// The repository that the images belong to, such as docker.io/library/nginx, whatever the bundle says
    #[arg(long = "as", value_name = "REGISTRY/REPOSITORY")]
    under: Option<String>,
    /// Whose storage the folder is: a docker-registry's (whose images are those of the registry in --as, such as docker.io), or
    /// containerd's (/var/lib/containerd); else it is a bundle. What is not complete there is left out, and told
    #[arg(long, value_name = "PROGRAM", default_value = "oci")]
    from: Program,
    /// Clients without an account may have the images
    #[arg(long, conflicts_with = "private")]
    public: bool,
    /// Only clients that the mirror knows may have the images
    #[arg(long)]
    private: bool,
    /// Print what was imported as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Program {
    Oci,
    Distribution,
    Containerd,
}

const HELP: &str = "\
It takes what `cachalot export`, `docker save`, `skopeo copy … oci-archive:`, `podman save`, `buildah push`, `crane` and
`oras` write. Every byte is verified, and a bundle in which anything is wrong or missing changes nothing. An import that was
interrupted is simply run again. Archives without OCI manifests (`podman save` and `docker save` of old) get one that is
made here, always the same for the same layers.

Whose images are they? A bundle of Cachalot's says of each image whether it was had without credentials; others count as
public, for who imports a file has decided to give it out. --public and --private say otherwise. A mirror without its
upstream gives private images to nobody but the users of [access] or where share_private is set.";

/// Runs the command.
pub(super) fn run(args: &Import) -> ExitCode {
    with_store_or_new(&args.store, true, async |place| {
        let (source, options) = match args.source().and_then(|source| Ok((source, args.options()?))) {
            Ok(meant) => meant,
            Err(message) => return fail(&message),
        };
        let pin = options.pin.clone();
        let bar = bar();
        let importing = async {
            match place {
                Place::Stopped(store, config) => take_in(store, config, source, options, &bar).await,
                Place::Running(server) => send_to(server, source, &options, &bar).await,
            }
        };
        let imported = unless_interrupted(importing).await;
        bar.finish_and_clear();
        match imported {
            Some(Ok(imported)) => {
                print(&imported, pin.as_ref(), args.json);
                warn_of_unknown(place, &imported);
                ExitCode::SUCCESS
            }
            Some(Err(failed)) => failed.tell(),
            None => fail("interrupted; run it again: blobs that came in are not written twice"),
        }
    })
}

/// Why nothing was imported.
enum Failed {
    Here(BundleError),
    There(ApiClientError),
}

/// Imports into a store that is in our hands.
async fn take_in(
    store: &Store,
    config: &Config,
    source: Source,
    options: Options,
    bar: &ProgressBar,
) -> Result<Imported, Failed> {
    let names = app::names(config);
    let canonical = Canonical::new(move |image| names.canonical_if_known(image).map_err(|error| error.to_string()));
    let show = |progress: &Progress| show_bundle(bar, progress);
    import(store, source, &Options { canonical, ..options }, &show).await.map_err(Failed::Here)
}

/// Sends the bundle to a server that uses the store.
async fn send_to(server: &ApiClient, source: Source, options: &Options, bar: &ProgressBar) -> Result<Imported, Failed> {
    let sending = send(source, options.under.as_ref()).await.map_err(Failed::Here)?;
    if let Some(blobs) = &sending.blobs {
        server.send::<Value>(Method::POST, "/imports/room", Some(blobs)).await.map_err(Failed::There)?;
    }
    let (shown, total_bytes) = (bar.clone(), sending.size_bytes);
    let mut done_bytes = 0;
    let bytes = sending.bytes.inspect_ok(move |bytes| {
        done_bytes += bytes.len() as u64;
        show_bundle(&shown, &Progress { done_bytes, total_bytes });
    });
    let path = format!("/imports?{}", query(options, sending.partly));
    server.upload(&path, bytes).await.map_err(Failed::There)
}

/// How a server is told how to import.
fn query(options: &Options, partly: bool) -> String {
    let mut query = vec![format!("partly={partly}")];
    query.extend(options.pin.iter().map(|pin| format!("pin={}", escape(pin.as_str()))));
    query.extend(options.under.iter().map(|under| format!("under={}", escape(&under.to_string()))));
    query.extend(options.public.map(|public| format!("public={public}")));
    query.join("&")
}

/// Says it where an image is from a registry that isn't configured here: it would be there, and nobody could pull it.
#[expect(clippy::print_stderr, reason = "this is where commands talk to the person who typed them")]
fn warn_of_unknown(place: &Place, imported: &Imported) {
    let names = imported.images.iter().map(|image| (&image.image.repository.registry, &image.image));
    for (registry, image) in names.collect::<BTreeMap<_, _>>() {
        if let Err(message) = place.canonical(std::slice::from_ref(image)) {
            eprintln!("cachalot: nobody can pull the images of {registry} yet: {message}");
        }
    }
}

#[expect(clippy::print_stdout, reason = "what came in is what people want to know")]
fn print(imported: &Imported, pin: Option<&PinName>, as_json: bool) {
    if as_json {
        println!("{}", json!(imported));
        return;
    }
    for image in &imported.images {
        let mut notes = vec![image.digest.to_string()];
        notes.extend((!image.platforms.is_empty()).then(|| image.platforms.join(" ")));
        notes
            .extend((!image.left_out.is_empty()).then(|| format!("(not in the bundle: {})", image.left_out.join(" "))));
        notes.extend(
            image.is_made_here.then(|| "(the archive had no OCI manifest; one was made over its layers)".to_owned()),
        );
        notes.extend((!image.public).then(|| "(private)".to_owned()));
        println!("{}  {}", image.image, notes.join("  "));
    }
    for name in &imported.referrers {
        println!("{name}  refers to them");
    }
    for what in &imported.left_out {
        println!("left out: {what}");
    }
    let Imported { brought_blobs, brought_bytes, held_blobs, .. } = imported;
    println!("{brought_blobs} blobs, {}, came in; {held_blobs} were held already", size(*brought_bytes));
    if let Some(pin) = pin {
        println!("the pin {pin} keeps them");
    }
}

// === impl Failed ===

impl Failed {
    fn tell(&self) -> ExitCode {
        match self {
            Self::Here(error) => fail(&error.to_string()),
            Self::There(error) => refused(error),
        }
    }
}

// === impl Import ===

impl Import {
    fn is_stdin(&self) -> bool {
        self.source == Path::new("-")
    }

    fn source(&self) -> Result<Source, String> {
        let path = self.source.clone();
        match self.from {
            Program::Oci if self.is_stdin() => Ok(Source::Stdin),
            Program::Oci => Ok(Source::Path(path)),
            Program::Containerd => Ok(Source::Containerd(path)),
            Program::Distribution => {
                let name = self.under.as_deref();
                let name = name.ok_or("say which registry's images these are, such as --as docker.io")?;
                let name: Result<RegistryName, _> = name.parse();
                Ok(Source::Registry(path, name.map_err(|error| format!("--as: {error}"))?))
            }
        }
    }

    fn options(&self) -> Result<Options, String> {
        let under = match (self.from, &self.under) {
            (Program::Distribution, _) | (_, None) => None,
            (_, Some(text)) => Some(text.parse::<Repository>().map_err(|error| format!("--as: {error}"))?),
        };
        let pin = match (&self.pin, self.no_pin) {
            (Some(pin), _) => Some(pin.clone()),
            (None, true) => None,
            (None, false) if self.is_stdin() => {
                return Err(BundleError::NoPinName("the standard input".to_owned()).to_string());
            }
            (None, false) => Some(pin_name(&self.source).map_err(|error| error.to_string())?),
        };
        let public = match (self.public, self.private) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            (false, false) => None,
        };
        Ok(Options { under, pin, public, ..Options::default() })
    }
}

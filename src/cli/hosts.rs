//! `cachalot hosts`: the configuration that brings a client to the mirror, printed, written, or taken back.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use crate::config;
use crate::nodes::{Client, ClientFile, MirrorUrl, Wanted, files_of, place, take_back};
use crate::oci::RegistryName;

use super::fail;

/// What clients are to be told.
#[derive(Debug, Args)]
pub(super) struct Told {
    /// The mirror's address as clients reach it, such as `http://10.0.0.7:5050`; may be repeated
    #[arg(long, value_name = "URL")]
    mirror: Vec<MirrorUrl>,
    /// A registry that is mirrored; may be repeated. Otherwise all, or those that need no configuration
    #[arg(long, value_name = "NAME")]
    registry: Vec<RegistryName>,
    /// Registry that is asked itself all the same (containerd); may be repeated
    #[arg(long, value_name = "NAME")]
    except: Vec<RegistryName>,
    /// Leave no way round the mirror; otherwise clients ask the real registry where the mirror can't help
    #[arg(long)]
    strict: bool,
    /// Authority of the mirror's certificate (PEM), where it lies on the client
    #[arg(long, value_name = "FILE")]
    ca: Option<String>,
    /// Header to send to the mirror, such as "Authorization: Bearer …" (containerd); may be repeated
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// How long a mirror that doesn't answer may delay a request, in milliseconds
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 500)]
    dial_timeout: u64,
    /// Have signatures looked for beside images (podman, CRI-O)
    #[arg(long)]
    sigstore: bool,
}

/// The arguments of `hosts`.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub(super) struct Hosts {
    /// Whose configuration
    #[arg(value_name = "CLIENT", required_unless_present = "undo")]
    client: Option<Client>,
    #[command(flatten)]
    told: Told,
    /// Write the files into this folder: containerd's certs.d, registries.conf.d, …
    #[arg(long, value_name = "DIR", conflicts_with = "undo")]
    write: Option<PathBuf>,
    /// Take back what was written into this folder; what was there before comes back
    #[arg(long, value_name = "DIR")]
    undo: Option<PathBuf>,
}

const HELP: &str = "\
Name the mirror by an address: nodes pull without the cluster's name service. What is printed says where it belongs. With
--write only files of our own are touched; a file that is there already is kept beside ours, and --undo brings it back byte
for byte. Writing once more, with other options, changes what was written before.";

/// Runs the command.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what is printed is what the command is for")]
pub(super) fn run(args: &Hosts) -> ExitCode {
    if let Some(folder) = &args.undo {
        return said(take_back(folder));
    }
    // Without the other option there is one.
    let Some(client) = args.client else { return fail("say whose configuration is wanted, such as containerd") };
    let told = &args.told;
    if !told.except.is_empty() && client != Client::Containerd {
        return fail("only containerd can be told of exceptions: name the registries that are mirrored, by --registry");
    }
    let wanted = match told.wanted() {
        Ok(wanted) => wanted,
        Err(problem) => return fail(&problem),
    };
    if let Some(registry) = wanted.registries.iter().find(|registry| !client.can_name(registry)) {
        let client = client.name();
        return fail(&format!(
            "{client} asks a mirror for MIRROR/REGISTRY/IMAGE, and {registry} can't stand there for its colon: give this upstream \
             an alias on the mirror, such as aliases = [\"corp\"], print the configuration for another registry, and write \
             MIRROR/corp where that has MIRROR/REGISTRY"
        ));
    }
    for mirror in wanted.mirrors.iter().filter(|mirror| mirror.is_cluster_name()) {
        eprintln!(
            "cachalot: {} looks like a name inside a cluster, which nodes can't look up; give an address",
            mirror.host
        );
    }
    let files = files_of(client, &wanted);
    if let Some(folder) = &args.write {
        return said(place(folder, &files));
    }
    for ClientFile { place, text, notes, .. } in &files {
        eprintln!("# {place}");
        for note in notes {
            eprintln!("# {note}");
        }
        print!("{text}");
    }
    ExitCode::SUCCESS
}

/// Tells what was done.
#[expect(clippy::print_stdout, reason = "what was changed on a machine is what people want to know")]
fn said(done: Result<Vec<String>, crate::nodes::PlacingError>) -> ExitCode {
    match done {
        Ok(done) if done.is_empty() => println!("nothing to do"),
        Ok(done) => println!("{}", done.join("\n")),
        Err(error) => return fail(&error.to_string()),
    }
    ExitCode::SUCCESS
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("a header is NAME: VALUE")?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name.is_empty() || !name.bytes().all(is_token) || value.chars().any(char::is_control) {
        return Err("a header's name is letters, digits and dashes, and its value one line".to_owned());
    }
    Ok((name.to_owned(), value.trim().to_owned()))
}

// === impl Told ===

impl Told {
    /// The same for those who write it. Fails without a mirror.
    pub(super) fn wanted(&self) -> Result<Wanted, String> {
        if self.mirror.is_empty() {
            return Err("name the mirror: --mirror http://ADDRESS:PORT".to_owned());
        }
        // The registries that need no configuration are those of an empty one.
        let known = config::load_text("").map(|config| config.upstreams).unwrap_or_default();
        let known = known.iter().filter_map(|upstream| upstream.name.to_string().parse().ok()).collect();
        Ok(Wanted {
            mirrors: self.mirror.clone(),
            registries: self.registry.clone(),
            known,
            except: self.except.clone(),
            strict: self.strict,
            ca_file: self.ca.clone(),
            headers: self.header.clone(),
            dial_timeout: Duration::from_millis(self.dial_timeout),
            sigstore: self.sigstore,
        })
    }
}

// === impl Client ===

impl ValueEnum for Client {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let value = PossibleValue::new(self.name());
        Some(if *self == Self::K3s { value.alias("rke2") } else { value })
    }
}

//! `cachalot node`: what the chart's DaemonSets run on each machine, with no shell in the image.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, io, thread};

use clap::{Args, Subcommand};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::nodes::{self, Client, MirrorUrl, certs_folder, files_of};
use crate::{files, upstream};

use super::ask::{Answer, ask_mirror, connect, exchange, secured};
use super::hosts::Told;
use super::{block_on, fail};

/// The arguments of `node`.
#[derive(Debug, Args)]
pub(super) struct Node {
    #[command(subcommand)]
    step: Step,
}

#[derive(Debug, Subcommand)]
enum Step {
    /// Tell this machine's containerd of the mirror, as soon as that answers from here
    Configure(Box<Configure>),
    /// Take back what `configure` has written
    Restore(Restore),
    /// Copy this program into a folder, for containers of images that have nothing to run
    Copy(Copy),
    /// Wait for the end
    Pause,
    /// Wait until a DaemonSet's pods are ready on all nodes, asking Kubernetes from inside a pod
    Await(Await),
}

#[derive(Debug, Args)]
struct Configure {
    /// Where the machine's root is
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    #[command(flatten)]
    told: Told,
    /// How long to wait for the mirror, in seconds; otherwise without end
    #[arg(long, value_name = "SECONDS")]
    patience: Option<u64>,
}

#[derive(Debug, Args)]
struct Restore {
    /// Where the machine's root is
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

#[derive(Debug, Args)]
struct Copy {
    /// The folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

#[derive(Debug, Args)]
struct Await {
    /// Its name, in this pod's namespace
    #[arg(value_name = "DAEMONSET")]
    name: String,
    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    patience: u64,
    /// The API, by default as Kubernetes tells pods
    #[arg(long, value_name = "URL", hide = true)]
    api: Option<MirrorUrl>,
    /// Who we are there
    #[arg(long, value_name = "DIR", default_value = "/var/run/secrets/kubernetes.io/serviceaccount", hide = true)]
    account: PathBuf,
}

/// How long one question may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long there is between two questions.
const INTERVAL: Duration = Duration::from_secs(2);

/// How often a wait is told of.
const TOLD_EVERY: Duration = Duration::from_secs(30);

/// The largest token, name or certificate of an account.
const ACCOUNT_BYTES_MAX: u64 = 1 << 20;

/// Runs the command.
pub(super) fn run(node: &Node) -> ExitCode {
    let done = match &node.step {
        Step::Configure(configure) => configure.run(),
        Step::Restore(restore) => restore.run(),
        Step::Copy(copy) => nodes::copy_program(&copy.folder)
            .map(|program| say(&format!("wrote {}", program.display())))
            .map_err(|error| error.to_string()),
        Step::Await(awaited) => awaited.run(),
        Step::Pause => return pause(),
    };
    done.map_or_else(|problem| fail(&problem), |()| ExitCode::SUCCESS)
}

/// Waits until it is told to end. The first process of a container gets no signal that it has not asked for.
fn pause() -> ExitCode {
    block_on(async {
        let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        match (terminate, interrupt) {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                ExitCode::SUCCESS
            }
            (Err(error), _) | (_, Err(error)) => fail(&format!("could not listen for signals: {error}")),
        }
    })
}

/// Asks again and again until there is something, telling now and then why there is nothing yet.
fn until<T>(patience: Option<Duration>, mut ask: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let begun = Instant::now();
    let mut told: Option<Instant> = None;
    loop {
        match ask() {
            Ok(found) => return Ok(found),
            Err(problem) if patience.is_some_and(|patience| begun.elapsed() >= patience) => return Err(problem),
            Err(problem) if told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) => {
                say(&format!("waiting: {problem}"));
                told = Some(Instant::now());
            }
            Err(_) => {}
        }
        thread::sleep(INTERVAL);
    }
}

#[expect(clippy::print_stdout, reason = "what is done on a machine is what its owner wants to know")]
fn say(line: &str) {
    println!("{line}");
}

// === impl Configure ===

impl Configure {
    /// Nothing is written before a mirror has answered from this machine: containerd would wait for it at every pull.
    fn run(&self) -> Result<(), String> {
        let wanted = self.told.wanted()?;
        if let Some(mirror) = wanted.mirrors.iter().find(|mirror| mirror.is_cluster_name()) {
            let name = &mirror.host;
            return Err(format!("{name} is a name inside a cluster, which nodes can't look up; give an address"));
        }
        let folder = certs_folder(&self.root).map_err(|unfit| unfit.to_string())?;
        for doubt in &folder.doubts {
            say(&format!("careful: {}: {}; {}", doubt.place.display(), doubt.what, doubt.advice));
        }
        until(self.patience.map(Duration::from_secs), || {
            let refusals = wanted
                .mirrors
                .iter()
                .map(|mirror| ask_mirror(mirror, TIMEOUT).err().map(|problem| format!("{}: {problem}", mirror.url)));
            let refusals: Vec<String> = refusals.collect::<Option<_>>().unwrap_or_default();
            let nobody = format!("no mirror answers from here: {}", refusals.join("; "));
            if refusals.is_empty() { Ok(()) } else { Err(nobody) }
        })?;
        let done = nodes::place(&folder.path, &files_of(Client::Containerd, &wanted)).map_err(|e| e.to_string())?;
        for line in &done {
            say(line);
        }
        say("containerd asks the mirror from its next pull on; nothing was restarted");
        Ok(())
    }
}

// === impl Restore ===

impl Restore {
    /// A machine that nothing could be written on has nothing to be taken back.
    fn run(&self) -> Result<(), String> {
        let folder = match certs_folder(&self.root) {
            Ok(folder) => folder.path,
            Err(nodes::Unfit::NotRead(_)) => self.root.join(nodes::CERTS_FOLDER),
            Err(unfit) => {
                say(&format!("nothing to do: {unfit}"));
                return Ok(());
            }
        };
        let done = nodes::take_back(&folder).map_err(|error| error.to_string())?;
        say(&if done.is_empty() { "nothing to do".to_owned() } else { done.join("\n") });
        Ok(())
    }
}

// === impl Await ===

impl Await {
    fn run(&self) -> Result<(), String> {
        until(Some(Duration::from_secs(self.patience)), || self.look())?;
        say(&format!("{} is ready on all nodes", self.name));
        Ok(())
    }

    /// Whether it is ready, by its status.
    fn look(&self) -> Result<(), String> {
        let answer = self.ask().map_err(|error| format!("Kubernetes does not answer: {error}"))?;
        if answer.status() != Some(200) {
            return Err(format!("Kubernetes says {:?} when asked for {}", answer.line, self.name));
        }
        let found: Value = serde_json::from_str(&answer.body)
            .map_err(|error| format!("Kubernetes' answer is not understood: {error}"))?;
        let number = |path: &str| found.pointer(path).and_then(Value::as_u64);
        let (wanted, ready) = (number("/status/desiredNumberScheduled"), number("/status/numberReady").unwrap_or(0));
        let is_seen = number("/status/observedGeneration") == number("/metadata/generation");
        match wanted {
            Some(wanted) if is_seen && ready >= wanted => Ok(()),
            Some(wanted) if is_seen => Err(format!("{} is ready on {ready} of {wanted} nodes", self.name)),
            _ => Err(format!("{} has not been looked at by Kubernetes yet", self.name)),
        }
    }

    fn ask(&self) -> io::Result<Answer> {
        let of_account =
            |name: &str| files::read_text(&self.account.join(name), ACCOUNT_BYTES_MAX).map_err(io::Error::other);
        let namespace = of_account("namespace")?;
        let path = format!("/apis/apps/v1/namespaces/{}/daemonsets/{}", namespace.trim(), self.name);
        let head = format!("Accept: application/json\r\nAuthorization: Bearer {}\r\n", of_account("token")?.trim());
        if let Some(api) = &self.api {
            return exchange(&api.host, &path, &head, connect(&api.host, TIMEOUT)?);
        }
        let variable = |name: &str| env::var(name).map_err(|_| io::Error::other(format!("{name} is not set: no pod")));
        let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let settings =
            upstream::tls_settings(Some(Path::new(&self.account.join("ca.crt")))).map_err(io::Error::other)?;
        exchange(&address, &path, &head, secured(&address, settings, connect(&address, TIMEOUT)?)?)
    }
}

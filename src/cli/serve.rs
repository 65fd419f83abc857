//! `cachalot serve`: runs the mirror until it's told to stop.

use std::process::ExitCode;

use sd_notify::NotifyState;

use crate::app::{self, ConfigSource, Running};
use crate::config::{Certificate, Config, LogFormat};
use crate::server::listen;
use crate::{tasks, telemetry};

use super::{Settings, block_on, fail, fail_config};

/// Loads the configuration, starts the server, and waits for its end.
pub(super) fn run(settings: &Settings) -> ExitCode {
    let config = match settings.load() {
        Ok(config) => config,
        Err(errors) => return fail_config(&errors),
    };
    let format = match config.log.format {
        LogFormat::Text => telemetry::Format::Text,
        LogFormat::Json => telemetry::Format::Json,
    };
    if let Err(error) = telemetry::init(format, &config.log.level) {
        return fail(&error.to_string());
    }
    let code = block_on(serve(config, settings.source()));
    telemetry::flush();
    code
}

async fn serve(config: Config, source: ConfigSource) -> ExitCode {
    tracing::info!("cachalot {}", crate::VERSION);
    let limit = listen::raise_descriptor_limit();
    tracing::debug!(?limit, "raised the limit of open files");
    let running = match app::start_with(&config, Some(source), None).await {
        Ok(running) => running,
        Err(error) => {
            tracing::error!("could not start: {error}");
            return ExitCode::from(super::EXIT_FAILURE);
        }
    };
    if let Err(error) = running.shutdown.obey_signals().and_then(|()| running.obey_hangups()) {
        return fail(&format!("could not listen for signals: {error}"));
    }
    announce(&config, &running);
    tell_systemd(&[NotifyState::Ready]);
    let shutdown = running.shutdown.clone();
    tasks::spawn("stopping", async move {
        shutdown.draining().await;
        tell_systemd(&[NotifyState::Stopping]);
    });
    let cut = running.wait().await;
    if cut > 0 {
        tracing::warn!(cut, "stopped; {cut} connections were cut");
    } else {
        tracing::info!("stopped; every request had finished");
    }
    ExitCode::SUCCESS
}

/// Says how things stand to a service manager, if one wants to know (`NOTIFY_SOCKET`).
fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "could not tell the service manager how things stand");
    }
}

/// Says where the server listens and how to pull through it.
fn announce(config: &Config, running: &Running) {
    let snapshot = running.store.snapshot();
    tracing::info!(
        path = %config.storage.path.display(),
        capacity_bytes = snapshot.capacity_bytes,
        present_bytes = snapshot.present_bytes,
        blobs = snapshot.blobs,
        "holding {} blobs, {} of {} MiB",
        snapshot.blobs,
        snapshot.present_bytes >> 20,
        snapshot.capacity_bytes >> 20,
    );
    for upstream in config.upstreams.iter().filter(|upstream| upstream.share_private) {
        tracing::warn!(
            upstream = %upstream.name,
            "{}: share_private is on, so private images are served to everyone who can reach this mirror",
            upstream.name
        );
    }
    for address in &running.admin {
        tracing::info!(%address, "health and metrics on {}://{address}/readyz and /metrics, and a page for people at /", scheme(&config.admin.tls));
    }
    for address in &running.listen {
        tracing::info!(%address, offline = config.offline, "serving on {}://{address}/v2/", scheme(&config.server.tls));
        if let Some(upstream) = &config.server.default_upstream {
            tracing::info!(
                "try: skopeo inspect --tls-verify=false docker://{}/{upstream}/library/alpine",
                listen::reachable(*address)
            );
        }
    }
}

fn scheme(certificates: &[Certificate]) -> &'static str {
    if certificates.is_empty() { "http" } else { "https" }
}

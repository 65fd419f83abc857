//! The OCI distribution-spec conformance program against a mirrored repository, in read-only mode.

use serde_json::Value;

use crate::fixture::FIXTURE;
use crate::http;
use crate::image::text;
use crate::mirror::Mirror;
use crate::process::tool;
use crate::upstream::Upstream;

/// These must be there and pass; an empty run would pass otherwise.
const MUST_PASS: [&str; 14] = [
    "ping",
    "empty/tag list",
    "empty/referrers",
    "read-only/tag-list",
    "read-only/head/manifest-head-by-tag",
    "read-only/head/manifest-head-by-digest",
    "read-only/head/blob-head",
    "read-only/pull/manifest-by-tag",
    "read-only/pull/manifest-by-digest",
    "read-only/pull/blob-get",
    "read-only/referrers",
    "missing-manifest/by-digest",
    "missing-manifest/by-tag",
    "invalid-digest-format/manifest-get",
];

/// Before the name of every test in the report.
const PREFIX: &str = "OCI Conformance Test/";

#[test]
fn the_oci_conformance_program_passes_in_read_only_mode() {
    let upstream = Upstream::start(&FIXTURE.storage);
    let mirror = Mirror::start(&upstream);
    let report = conformance(&mirror);
    let results = results(&report);
    for name in MUST_PASS {
        assert!(results.contains(&(name, "Pass")), "{name} did not pass\n{report}");
    }
    let bad: Vec<_> = results.iter().filter(|(_, status)| !["Pass", "Skip", "Disabled"].contains(status)).collect();
    assert!(bad.is_empty(), "{bad:?}\n{report}");
    assert!(report.contains("\nOCI Conformance Result: Pass\n"), "{report}");
}

#[test]
fn the_referrers_of_an_image_are_listed_from_the_fallback_tag_of_an_old_registry() {
    let mut upstream = Upstream::start(&FIXTURE.storage);
    let mirror = Mirror::start(&upstream);
    let image = &FIXTURE.busybox;
    let check = || {
        let target = format!("/v2/docker.io/{}/referrers/{}", image.repository, image.digest);
        let answer = http::request("GET", mirror.port, &target, "", b"").expect("the mirror answers");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("application/vnd.oci.image.index.v1+json"));
        let list: Value = serde_json::from_slice(&answer.body).expect("an index is JSON");
        let listed: Vec<_> = list["manifests"].as_array().expect("a list").iter().map(|m| text(&m["digest"])).collect();
        assert_eq!(listed, [FIXTURE.artifact.as_str()]);
    };
    check();
    upstream.stop();
    check();
}

/// Runs the program and returns its report. Its exit code and its result files say nothing here: without push, this revision
/// panics while it writes them (a data set that was never made has no name), after it has printed the report.
fn conformance(mirror: &Mirror) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = &FIXTURE.busybox;
    let blobs: Vec<_> = image.platforms[0].blobs.iter().map(|(digest, _)| digest.as_str()).collect();
    let settings = [
        ("VERSION", "1.1"),
        ("REGISTRY", &format!("127.0.0.1:{}", mirror.port)),
        ("TLS", "disabled"),
        ("REPO1", &format!("docker.io/{}", image.repository)),
        ("API_PUSH", "false"),
        ("API_BLOBS_DELETE", "false"),
        ("API_MANIFESTS_DELETE", "false"),
        ("API_TAGS_DELETE", "false"),
        ("RO_DATA_TAGS", image.tag),
        ("RO_DATA_MANIFESTS", &image.digest),
        ("RO_DATA_BLOBS", &blobs.join(" ")),
        ("RO_DATA_REFERRERS", &image.digest),
        ("RESULTS_DIR", &folder.path().display().to_string()),
    ];
    let mut command = tool("conformance");
    // It also reads oci-conformance.yaml from its working folder.
    command.current_dir(folder.path());
    for (name, value) in settings {
        command.env(format!("OCI_{name}"), value);
    }
    let output = command.output().expect("setpriv (util-linux) can be started");
    assert_ne!(output.status.code(), Some(127), "the conformance program is not installed: see .ci/run");
    String::from_utf8(output.stdout).expect("the report is text")
}

/// `    OCI Conformance Test/empty/tag list: Pass` -> ("empty/tag list", "Pass"), for every line that names a test.
fn results(report: &str) -> Vec<(&str, &str)> {
    report.lines().filter_map(|line| line.trim_start().strip_prefix(PREFIX)?.rsplit_once(": ")).collect()
}

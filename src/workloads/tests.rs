//! Tests of the whole: objects as people write them, and what is found in them.

use super::*;

fn found(text: &str) -> Found {
    let mut found = Found::default();
    found.read("all.yaml", text, &[]).unwrap();
    found.done()
}

fn names(found: &Found) -> Vec<String> {
    found.images.keys().cloned().collect()
}

#[test]
fn containers_of_all_kinds_are_found_in_lists_and_templates() {
    let text = r#"
# Source: chart/templates/a.yaml
apiVersion: apps/v1
kind: Deployment
metadata: { name: web, annotations: { kubectl.kubernetes.io/last-applied-configuration: '{"image":"old:1.0"}' } }
spec:
  template:
    spec:
      initContainers: [{ name: init, image: busybox:1.36 }]
      containers:
        - { name: web, image: "quay.io/a/web:v1" }
      ephemeralContainers: [{ name: debug, image: nicolaka/netshoot }]
      volumes: [{ name: data, image: { reference: "ghcr.io/a/data:v2", pullPolicy: Always } }]
---
---
apiVersion: v1
kind: List
items:
  - kind: CronJob
    metadata: { name: nightly }
    spec: { jobTemplate: { spec: { template: { spec: { containers: [{ name: x, image: registry.corp:5000/job:3 }] } } } } }
"#;
    assert_eq!(
        names(&found(text)),
        [
            "docker.io/library/busybox:1.36",
            "docker.io/nicolaka/netshoot:latest",
            "ghcr.io/a/data:v2",
            "quay.io/a/web:v1",
            "registry.corp:5000/job:3"
        ]
    );
}

#[test]
fn what_runs_is_found_by_its_digest() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let text = format!(
        r#"{{"kind":"List","items":[{{"kind":"Pod","metadata":{{"name":"p"}},
        "spec":{{"containers":[{{"image":"nginx:1.27"}}]}},
        "status":{{"containerStatuses":[
          {{"image":"nginx:1.27","imageID":"docker-pullable://nginx@{digest}"}},
          {{"image":"docker.io/a/b:1","imageID":"{digest}"}},{{"image":"{digest}","imageID":"{digest}"}}]}}}}]}}"#
    );
    let found = found(&text);
    assert_eq!(
        names(&found),
        ["docker.io/a/b:1", "docker.io/library/nginx:1.27", &format!("docker.io/library/nginx@{digest}")]
    );
    assert_eq!(found.look_alikes, BTreeMap::new());
}

#[test]
fn operators_name_images_in_variables_arguments_and_parts() {
    let text = r#"
kind: Deployment
metadata: { name: operator }
spec:
  containers:
    - image: quay.io/op/operator:v1
      args: ["--config-reloader-image=quay.io/op/reloader:v2", "--log-level=info"]
      env:
        - { name: RELATED_IMAGE_DB, value: "quay.io/op/db:v3" }
        - { name: SIDECAR_IMAGE, value: "quay.io/op/sidecar:v4" }
        - { name: PULL_IMAGE, value: "true" }
        - { name: OTHER, value: "quay.io/op/mentioned:v5" }
---
kind: Cluster
spec: { imageName: "ghcr.io/cnpg/postgresql:16.2" }
---
kind: Thing
spec:
  image: { registry: quay.io, repository: op/parts, tag: v6 }
  plugin: { image: { repository: op/digested, digest: "sha256:0000000000000000000000000000000000000000000000000000000000000000" } }
"#;
    let found = found(text);
    let digested = format!("docker.io/op/digested@sha256:{}", "0".repeat(64));
    let mut expected = vec![
        "ghcr.io/cnpg/postgresql:16.2",
        "quay.io/op/db:v3",
        "quay.io/op/operator:v1",
        "quay.io/op/parts:v6",
        "quay.io/op/reloader:v2",
        "quay.io/op/sidecar:v4",
        &digested,
    ];
    expected.sort_unstable();
    assert_eq!(names(&found), expected);
    assert_eq!(found.look_alikes.keys().collect::<Vec<_>>(), ["quay.io/op/mentioned:v5"]);
    assert_eq!(found.look_alikes.values().next().unwrap(), "all.yaml (Deployment operator)");
}

#[test]
fn what_names_no_image_is_told_and_the_rest_is_found() {
    let text = "kind: Pod\nmetadata: {name: p}\nspec: {containers: [{image: \"${IMAGE}\"}, {image: a:1.0}, {image: \"\"}, {image: 7}]}\n";
    let found = found(text);
    assert_eq!(names(&found), ["docker.io/library/a:1.0"]);
    assert_eq!(found.invalid.len(), 1, "{:?}", found.invalid);
    assert!(found.invalid[0].starts_with("all.yaml (Pod p): \"${IMAGE}\" names no image"), "{:?}", found.invalid);
}

#[test]
fn further_places_are_looked_at_when_they_are_named() {
    let text = "kind: Custom\nspec: {runtime: {pictures: [{name: \"a/b:1\"}, {name: \"c/d:2\"}], one: e/f:3}}\n";
    assert_eq!(found(text).images.len(), 0);
    let mut found = Found::default();
    let paths: Vec<Path> =
        ["spec.runtime.pictures.*.name", ".spec.runtime.one"].map(|path| path.parse().unwrap()).into();
    found.read("x", text, &paths).unwrap();
    assert_eq!(names(&found.done()), ["docker.io/a/b:1", "docker.io/c/d:2", "docker.io/e/f:3"]);
    assert!("spec..x".parse::<Path>().is_err());
}

#[test]
fn what_is_no_yaml_is_named_and_costs_nothing_else() {
    let mut found = Found::default();
    let error = found.read("bad.yaml", "a: [1,\n b: {", &[]).unwrap_err();
    assert!(error.to_string().starts_with("bad.yaml is no YAML: "), "{error}");
    // Aliases that stand for more and more don't take all memory.
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n\
                g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    assert!(found.read("bomb.yaml", bomb, &[]).is_err());
    assert_eq!(found.images.len(), 0);
}

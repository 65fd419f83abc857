"""The chart, as a cluster gets it: linted, rendered, and each thing in it read by what will read it.

    tests/chart/test.py CACHALOT

Needs helm, helm-unittest, helm-docs, promtool and openssl, and kubernetes-validate beside this Python.
"""

import http.server
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/cachalot"
# The oldest that is still supported somewhere, and the newest that there are schemas for.
VERSIONS = ["1.29", "1.37"]
# What Prometheus' operator defines, which is no part of Kubernetes.
OPERATOR = "monitoring.coreos.com/v1"

# Values that must not get through, and what is said of them.
REFUSED = [
    (["replicas=-1"], "minimum"),
    (["replica=2"], "additional properties 'replica' not allowed"),
    (["persistence.size=lots"], "does not match pattern"),
    (["capacity=10GiX"], "does not match pattern"),
    (["admin.port=5050"], "not"),
    (["service.type=ExternalName"], "value must be one of"),
    (["nodes.enabled=true"], "needs addresses that nodes can reach"),
    (["nodes.enabled=true", "nodes.mirrors={http://cachalot.cache.svc.cluster.local:5050}"], "can't look up"),
    (["nodes.mirrors={10.0.0.7:5050}"], "does not match pattern"),
    (["prePull.enabled=true"], "needs prePull.images"),
    (["warm.release.interval=1h"], "missing property 'images'"),
    (["registrySecrets={a}", "config=[credentials]"], "stands for one"),
]

# containerd's configuration as its versions write it.
SECTION_2, SECTION_3 = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"
LAYOUTS = {
    "1.6": f'version = 2\n[plugins."{SECTION_2}".registry]\nconfig_path = "/etc/containerd/certs.d"\n',
    "1.7": f'version = 2\n[plugins."{SECTION_2}".registry]\nconfig_path = "/etc/containerd/certs.d"\n[plugins."{SECTION_2}".registry.headers]\n',
    "2.0": f"version = 3\n[plugins.'{SECTION_3}'.registry]\nconfig_path = '/etc/containerd/certs.d'\n",
    "2.2": f"version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n[plugins.'{SECTION_3}'.registry]\n"
    "config_path = '/etc/containerd/certs.d'\n",
}


def run(*command, **options):
    """Runs a program that is to go well, and returns what it printed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, **options)
    if done.returncode != 0:
        sys.exit(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def helm(*arguments):
    return ["helm", *arguments, "--kube-version", VERSIONS[-1] + ".0"]


def rendered(values, *arguments, release="mirror"):
    text = run(*helm("template", release, CHART, "--namespace", "cache", "-f", values, *arguments))
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


def validate(documents):
    for document in documents:
        if document["apiVersion"] != OPERATOR:
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)


def check_configuration(documents, cachalot, scratch):
    """What the mirrors are told is what they understand; the secrets that it names lie in the scratch folder."""
    count = 0
    for document in of_kind(documents, "ConfigMap"):
        for name, text in document["data"].items():
            if name.endswith(".toml"):
                file = scratch / name
                file.write_text(text.replace("/secrets/", f"{scratch}/secrets/"))
                run(cachalot, "check-config", "--config", file, "--capacity", "4GiB", "--data", scratch / "data")
                count += 1
    assert count > 0


def secrets(scratch):
    for name in ("corp", "hub-pull", "quay-pull", "mirror-tls", "mirror-access"):
        (scratch / "secrets" / name).mkdir(parents=True)
    folder = scratch / "secrets"
    (folder / "corp/password").write_text("hunter2")
    (folder / "hub-pull/.dockerconfigjson").write_text('{"auths": {"docker.io": {"auth": "YTpi"}}}')
    (folder / "quay-pull/.dockerconfigjson").write_text('{"auths": {"quay.io": {"auth": "YTpi"}}}')
    (folder / "mirror-access/tokens").write_text("ci:0123456789abcdef0123456789abcdef\n")
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=x",
        "-keyout", folder / "mirror-tls/tls.key", "-out", folder / "mirror-tls/tls.crt", "-days", "2")


def check_metrics(documents, scratch):
    """Rules are read by Prometheus, and neither they nor the dashboard ask for a metric that there is not."""
    known = set(re.findall(r"`(cachalot_\w+)`", (ROOT / "docs/metrics.md").read_text()))
    texts = [json.dumps(rule["spec"]) for rule in of_kind(documents, "PrometheusRule")]
    for rule in of_kind(documents, "PrometheusRule"):
        file = scratch / "rules.yaml"
        file.write_text(yaml.safe_dump(rule["spec"]))
        run("promtool", "check", "rules", file)
    for document in of_kind(documents, "ConfigMap"):
        for name, text in document["data"].items():
            if name.endswith(".json"):
                texts.append(json.dumps([target for panel in json.loads(text)["panels"] for target in panel["targets"]]))
    asked = set(re.findall(r"cachalot_\w+", " ".join(texts))) if len(texts) > 1 else set()
    unknown = {name for name in asked if name.removesuffix("_bucket") not in known}
    assert not unknown, f"no such metrics: {unknown}"
    return len(asked)


def tree(root):
    return {str(path.relative_to(root)): (path.stat().st_mode, path.read_bytes() if path.is_file() else None)
            for path in sorted(root.rglob("*"))}


class Registry(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def node_port_server():
    """A registry at a port that may be a node port."""
    for port in range(31000, 32000):
        try:
            server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Registry)
        except OSError:
            continue
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server
    sys.exit("no node port is free")


def run_on_machines(cachalot, scratch):
    """What the DaemonSets run, run: on machines as containerd's versions leave them, with files of others there or not."""
    server = node_port_server()
    port = server.server_address[1]
    documents = rendered(CHART / "ci/nodes-values.yaml", "--set", f"service.nodePort={port}")
    sets = {document["metadata"]["name"]: document for document in of_kind(documents, "DaemonSet")}

    def step(name, root):
        container = sets[name]["spec"]["template"]["spec"]["initContainers"][0]
        arguments = [argument.replace("$(HOST_IP)", "127.0.0.1").replace("/host", str(root)) for argument in container["args"]]
        return run(cachalot, *arguments)

    count = 0
    for version, config in LAYOUTS.items():
        for foreign in ({}, {"docker.io": "# theirs\n", "quay.io": "# theirs too\n"}):
            root = scratch / f"machine-{count}"
            folder = root / "etc/containerd"
            folder.mkdir(parents=True)
            (folder / "config.toml").write_text(config)
            for registry, text in foreign.items():
                (folder / "certs.d" / registry).mkdir(parents=True)
                (folder / "certs.d" / registry / "hosts.toml").write_text(text)
            before = tree(root)
            step("mirror-cachalot-nodes", root)
            hosts = (folder / "certs.d/docker.io/hosts.toml").read_text()
            assert f'[host."http://127.0.0.1:{port}"]' in hosts, f"{version}: {hosts}"
            # A pod that is started again, as by an upgrade, finds its own files.
            after = tree(root)
            step("mirror-cachalot-nodes", root)
            assert tree(root) == after, version
            step("mirror-cachalot-restore", root)
            assert tree(root) == before, version
            count += 1
    server.shutdown()
    return count


def main():
    cachalot = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        secrets(scratch)
        sets = sorted(CHART.glob("ci/*-values.yaml"))
        assert len(sets) >= 8, sets
        asked = 0
        for values in sets:
            run(*helm("lint", "--strict", CHART, "-f", values))
            documents = rendered(values)
            validate(documents)
            check_configuration(documents, cachalot, scratch)
            asked += check_metrics(documents, scratch)
            print(f"ok {values.name}: {len(documents)} objects")
        assert asked > 10, "the rules and the dashboard ask for metrics"
        names = rendered(sets[0], "--set", "nodes.enabled=true,service.clusterIP=10.0.0.1", release="r" * 53)
        assert all(len(document["metadata"]["name"]) <= 63 for document in names)
        for settings, words in REFUSED:
            arguments = [part for setting in settings for part in ("--set", setting)]
            done = subprocess.run(helm("template", "x", str(CHART), *arguments), capture_output=True, text=True, timeout=60)
            assert done.returncode != 0 and words in done.stderr, f"{settings}: {done.stderr or done.stdout[:300]}"
        print(f"ok {len(REFUSED)} sets of values are refused")
        print(f"ok {run_on_machines(cachalot, scratch)} machines are configured and restored")
        readme = run("helm-docs", "--chart-search-root", CHART, "--dry-run", "--log-level", "error", "--sort-values-order", "file",
                     "--skip-version-footer")
        assert readme.strip() == (CHART / "README.md").read_text().strip(), "run helm-docs as CONTRIBUTING.md says"
        print("ok the chart's README is the generated one")
    print(run("helm-unittest", "--strict", CHART).strip())


main()

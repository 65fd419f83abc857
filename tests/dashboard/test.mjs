// The dashboard in a real browser: it renders, follows a pull, writes clients' snippets, and can be used by keyboard, in
// light and dark and at a phone's width. Usage: node test.mjs CACHALOT CHROMIUM SCREENSHOT-FOLDER
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const { chromium } = createRequire(process.cwd() + "/")("playwright-core");
const [cachalot, browserPath, screenshots] = process.argv.slice(2);
const digest = bytes => "sha256:" + createHash("sha256").update(bytes).digest("hex");
const PATIENCE = 60_000;

// A registry with one image, whose layer stops half way until it is told to go on.
const layer = randomBytes(8 << 20);
const config = Buffer.from("{}");
const descriptor = (mediaType, bytes) => ({ mediaType, digest: digest(bytes), size: bytes.length });
const manifest = Buffer.from(JSON.stringify({
  schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
  config: descriptor("application/vnd.oci.image.config.v1+json", config),
  layers: [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
}));
let goOn;
const gate = new Promise(resolve => { goOn = resolve; });
const registry = createServer(async (request, response) => {
  const path = new URL(request.url, "http://x").pathname;
  const body = path.includes("/manifests/") ? manifest : path.endsWith(digest(layer)) ? layer : path.endsWith(digest(config)) ? config : Buffer.from("{}");
  const headers = { "content-length": body.length, "docker-content-digest": digest(body) };
  if (body === manifest) headers["content-type"] = "application/vnd.oci.image.manifest.v1+json";
  response.writeHead(200, headers);
  if (request.method === "HEAD") return response.end();
  if (body !== layer) return response.end(body);
  response.write(body.subarray(0, 4 << 20));
  await gate;
  response.end(body.subarray(4 << 20));
});
await new Promise(resolve => registry.listen(0, "127.0.0.1", resolve));

const folder = mkdtempSync(join(tmpdir(), "cachalot-dashboard-"));
writeFileSync(join(folder, "c.toml"), `
[server]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
[storage]
path = "${folder}/data"
capacity = "1GiB"
min_free = "1MiB"
[log]
format = "json"
[upstreams."docker.io"]
endpoints = ["http://127.0.0.1:${registry.address().port}"]
`);
const server = spawn(cachalot, ["serve", "--config", join(folder, "c.toml")], { stdio: ["ignore", "ignore", "pipe"] });
let browser;
try {
  let log = "";
  const addresses = await new Promise((resolve, reject) => {
    server.on("exit", code => reject(new Error(`the server ended with ${code}: ${log}`)));
    server.stderr.on("data", data => {
      log += data;
      const admin = log.match(/health and metrics on (http:\/\/[0-9.:]+)\/readyz/), clients = log.match(/serving on (http:\/\/[0-9.:]+)\/v2/);
      if (admin && clients) resolve({ admin: admin[1], clients: clients[1] });
    });
  });
  server.removeAllListeners("exit");
  browser = await chromium.launch({ executablePath: browserPath, args: ["--no-sandbox"] });
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
  page.setDefaultTimeout(PATIENCE);
  const complaints = [];
  page.on("pageerror", error => complaints.push(error.message));
  page.on("console", message => { if (message.type() === "error") complaints.push(message.text()); });
  page.on("request", request => assert(request.url().startsWith(addresses.admin) || request.url().startsWith("data:"), "asked for " + request.url()));
  await page.goto(addresses.admin + "/");
  await page.getByText(/^ready/).waitFor();

  // A pull is followed while it goes on.
  const get = async path => Buffer.from(await (await fetch(addresses.clients + "/v2/library/app" + path)).arrayBuffer());
  assert.deepEqual(await get("/manifests/v1"), manifest);
  const pulling = get("/blobs/" + digest(layer));
  const bar = page.getByRole("progressbar", { name: digest(layer) });
  await bar.waitFor();
  await page.getByText(/4\.0 MiB of 8\.0 MiB, .* 1 reader/).waitFor();
  assert.equal(Number(await bar.getAttribute("max")), layer.length);
  mkdirSync(screenshots, { recursive: true });
  await page.screenshot({ path: join(screenshots, "light.png"), fullPage: true });
  await page.emulateMedia({ colorScheme: "dark" });
  await page.screenshot({ path: join(screenshots, "dark.png"), fullPage: true });
  goOn();
  assert(layer.equals(await pulling));
  await bar.waitFor({ state: "detached" });
  for (let n = 0; n < 3; n++) assert(layer.equals(await get("/blobs/" + digest(layer))));
  await page.locator("#ratio", { hasText: "%" }).waitFor();
  await page.waitForFunction(() => parseFloat(document.getElementById("ratio").textContent) >= 50);
  await page.waitForFunction(() => document.querySelector("#chart-ratio path") !== null);
  assert.match(await page.locator("#upstreams").innerText(), /docker\.io\s+well/);

  // The image browser, by keyboard: down to the layers, pinned, not evicted while it is, unpinned, evicted.
  await page.getByRole("link", { name: "Images" }).focus();
  await page.keyboard.press("Enter");
  for (const [title, below] of [["docker.io", "library/app"], ["library/app", "v1"], ["v1", digest(layer).slice(0, 19)]]) {
    const summary = page.locator("#images summary", { has: page.getByText(title, { exact: true }) }).first();
    await summary.focus();
    await page.keyboard.press("Enter");
    await page.locator("#images").getByText(below).first().waitFor();
  }
  assert.match(await page.locator("#images table").innerText(), /layer[\s\S]*8\.0 MiB\s+held/);
  await page.screenshot({ path: join(screenshots, "images.png"), fullPage: true });
  const image = "docker.io/library/app:v1";
  await page.getByRole("button", { name: "Pin " + image }).click();
  await page.getByLabel("Name of the pin").fill("release");
  await page.keyboard.press("Enter");
  await page.locator("#pins").getByText("release").waitFor();
  await page.locator("#images").getByText("pinned by release").waitFor();
  const evict = async () => {
    await page.getByRole("button", { name: "Evict " + image }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Evict" }).click();
  };
  const complained = page.waitForEvent("console", message => message.type() === "error");
  await evict();
  await page.getByText("is kept by the pin release").waitFor();
  await complained;
  assert.equal(complaints.pop(), "Failed to load resource: the server responded with a status of 409 (Conflict)");
  await page.getByRole("button", { name: "Unpin " + image }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Cancel" }).click();
  await page.locator("#images").getByText("pinned by release").waitFor();
  await page.getByRole("button", { name: "Unpin " + image }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Unpin" }).click();
  await page.locator("#images").getByText("pinned by release").waitFor({ state: "detached" });
  await evict();
  await page.getByText("None yet: pull one.").waitFor();

  // What is fetched ahead is seen to be fetched.
  const begun = await fetch(addresses.admin + "/api/v1/seeds", { method: "POST", body: JSON.stringify({ images: [{ image: "app:v1" }], no_referrers: true }) });
  assert.equal(begun.status, 200);
  await page.getByRole("link", { name: "Jobs" }).click();
  await page.getByText("1 of 1 images held").waitFor();
  await page.getByRole("button", { name: "Verify all that is held" }).click();
  await page.getByText(/[34] blobs are right, none is wrong/).waitFor();

  // By keyboard to the requests.
  await page.getByRole("link", { name: "Requests" }).focus();
  await page.keyboard.press("Enter");
  await page.getByRole("cell", { name: "hit", exact: true }).first().waitFor();
  await page.getByLabel("Outcome").selectOption("miss");
  await page.getByRole("cell", { name: "hit", exact: true }).first().waitFor({ state: "detached" });
  assert.equal(await page.locator('nav a[aria-current="page"]').innerText(), "Requests");

  // What clients need to be told.
  await page.getByRole("link", { name: "Clients" }).click();
  await page.locator("#snippets").getByText("insecure = true").waitFor();
  const snippets = await page.locator("#snippets").innerText();
  assert(snippets.includes(`[host."${addresses.clients}"]`) && snippets.includes("insecure = true"), snippets);
  await page.getByLabel("Upstream").fill("quay.io");
  await page.getByText("/etc/containerd/certs.d/quay.io/hosts.toml").waitFor();

  // A phone: nothing is wider than the screen.
  await page.setViewportSize({ width: 390, height: 844 });
  for (const name of ["Images", "Requests", "Jobs", "Clients", "Overview"]) {
    await page.getByRole("link", { name }).click();
    await page.locator(`[data-page="${name.toLowerCase()}"]:visible`).waitFor();
    const wider = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert(wider <= 0, `${name}: ${wider} px are beyond the screen`);
  }
  await page.screenshot({ path: join(screenshots, "phone.png"), fullPage: true });

  // Contrast of all text that is shown, as WCAG AA wants it, in both schemes; and a label for all that is operated.
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    const faint = await page.evaluate(() => {
      const rgb = text => (text.match(/[\d.]+/g) ?? []).map(Number);
      const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
      const back = element => { for (; element; element = element.parentElement) { const color = rgb(getComputedStyle(element).backgroundColor); if (color.length === 3 || color[3] > 0) return color; } return [255, 255, 255]; };
      const found = [];
      for (const element of document.querySelectorAll("body *")) {
        if (!element.checkVisibility() || ![...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()) || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
        const [one, other] = [light(rgb(getComputedStyle(element).color)), light(back(element))].sort((a, b) => b - a);
        if ((one + 0.05) / (other + 0.05) < 4.5) found.push(element.outerHTML.slice(0, 100));
      }
      return found;
    });
    assert.deepEqual(faint, [], colorScheme);
  }
  const unlabelled = await page.evaluate(() => [...document.querySelectorAll("input, select, button, progress")].filter(e => !e.closest("label") && !e.getAttribute("aria-label") && !e.textContent.trim()).map(e => e.outerHTML));
  assert.deepEqual(unlabelled, []);
  assert.deepEqual(complaints, []);
  console.log("the dashboard renders, follows a pull, and is legible in light, dark and on a phone");
} finally {
  await browser?.close();
  server.kill("SIGTERM");
  await new Promise(resolve => server.exitCode === null ? server.on("exit", resolve) : resolve());
  registry.closeAllConnections();
  registry.close();
  rmSync(folder, { recursive: true, force: true });
}

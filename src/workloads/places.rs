//! Where Kubernetes objects name images: containers of every kind of object, what runs, image volumes, and operators' habits.

use std::str::FromStr;

use serde_json::{Map, Value};

use super::DEPTH_MAX;

/// A further place to look at: names of fields with dots in between, and `*` for all fields or items, such as
/// `spec.images.*.name`. It is looked for from the top of each object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(Vec<String>);

/// A text that is no such path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a path is names with dots in between, such as spec.images.*.name")]
pub struct InvalidPath;

/// Names of environment variables with which operators are told what to deploy begin or end like this.
const IMAGE_VARIABLES: (&str, &str) = ("RELATED_IMAGE_", "_IMAGE");

/// Several in one variable, a line each with what it is for: `3.8.0=quay.io/a/b:1`.
const IMAGES_VARIABLE: &str = "_IMAGES";

/// Flags that tell a program what to deploy end like this.
const IMAGE_FLAGS: [&str; 2] = ["image", "config-reloader"];

/// What runtimes put before the name of what runs.
const RUNTIME_PREFIXES: [&str; 2] = ["docker-pullable://", "docker://"];

/// Gives everything in an object's places for images.
pub(super) fn walk(value: &Value, give: &mut dyn FnMut(String)) {
    visit(value, give, 0);
}

fn visit(value: &Value, give: &mut dyn FnMut(String), depth: usize) {
    if depth > DEPTH_MAX {
        return;
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| visit(item, give, depth + 1)),
        Value::Object(fields) => {
            if let Some(image) = split(fields) {
                give(image);
            }
            for (name, field) in fields {
                match name.as_str() {
                    // The same once more, as text and as what went before.
                    "annotations" | "labels" | "managedFields" => {}
                    "image" if split(fields).is_some() => {}
                    "image" | "imageName" => image(field, give),
                    "url" => disk(field, give),
                    "imageID" => running(field, give),
                    _ => visit(field, give, depth + 1),
                }
            }
            variable(fields, give);
            argument(fields, give);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The value of a field called `image`: a name; the parts of one, as Helm charts and operators have them; or an image volume.
fn image(field: &Value, give: &mut dyn FnMut(String)) {
    let part = |name: &str| field.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    match field {
        // What runs, without a name that it could be asked for by; the name stands elsewhere.
        Value::String(text) if text.trim().starts_with("sha256:") => {}
        Value::String(text) if !text.trim().is_empty() => give(text.trim().to_owned()),
        Value::Object(_) => {
            if let Some(reference) = part("reference") {
                give(reference.to_owned());
            } else if let Some(repository) = part("repository") {
                let number =
                    ["tag", "version"].into_iter().find_map(|name| field.get(name).filter(|tag| tag.is_number()));
                if let Some(number) = number {
                    // 1.10 was read as 1.1: whoever wrote it must say which is meant.
                    return give(format!("{repository}:{number} (write the tag as a text)"));
                }
                let registry = part("registry").map(|registry| format!("{registry}/")).unwrap_or_default();
                let which = match (part("digest"), part("tag").or_else(|| part("version"))) {
                    (Some(digest), _) => format!("@{digest}"),
                    (None, Some(tag)) => format!(":{tag}"),
                    (None, None) => String::new(),
                };
                give(format!("{registry}{repository}{which}"));
            }
        }
        _ => {}
    }
}

/// An image in three parts beside each other, as operators have them: the repository without its last name, that, and which.
fn split(fields: &Map<String, Value>) -> Option<String> {
    let part = |name: &str| fields.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let (repository, name) = (part("repository")?, part("image")?);
    let which = part("version").or_else(|| part("tag"))?;
    let separator = if which.starts_with("sha256:") { '@' } else { ':' };
    Some(format!("{}/{name}{separator}{which}", repository.trim_end_matches('/')))
}

/// Where the disk of a virtual machine comes from, if that is an image.
fn disk(field: &Value, give: &mut dyn FnMut(String)) {
    if let Some(name) = field.as_str().and_then(|url| url.strip_prefix("docker://")) {
        give(name.to_owned());
    }
}

/// What a container's status says that it runs. An identifier without a repository can't be asked for.
fn running(field: &Value, give: &mut dyn FnMut(String)) {
    let Some(text) = field.as_str() else { return };
    let text = RUNTIME_PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
    if text.contains('@') {
        give(text.to_owned());
    }
}

/// Whether a text in a place that is for other things too can be an image: those are mostly words, such as `true`.
fn is_named(text: &str) -> bool {
    text.contains(['/', ':', '@'])
}

/// An environment variable that tells an operator what to deploy.
fn variable(fields: &Map<String, Value>, give: &mut dyn FnMut(String)) {
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    if let (Some(name), Some(value)) = (text("name"), text("value")) {
        let (begins, ends) = IMAGE_VARIABLES;
        if name.ends_with(IMAGES_VARIABLE) {
            let images = value.split_whitespace().map(|pair| pair.split_once('=').map_or(pair, |(_, image)| image));
            images.filter(|image| is_named(image)).for_each(|image| give(image.to_owned()));
        } else if (name.starts_with(begins) || name.ends_with(ends)) && is_named(value) {
            give(value.trim().to_owned());
        }
    }
}

/// An argument of a container that tells it what to deploy: `--config-reloader-image=…`.
fn argument(fields: &Map<String, Value>, give: &mut dyn FnMut(String)) {
    for list in ["args", "command"] {
        let Some(Value::Array(items)) = fields.get(list) else { continue };
        for item in items.iter().filter_map(Value::as_str) {
            let Some((flag, value)) = item.split_once('=') else { continue };
            if flag.starts_with("--") && IMAGE_FLAGS.iter().any(|end| flag.ends_with(end)) && is_named(value) {
                give(value.to_owned());
            }
        }
    }
}

// === impl Path ===

impl Path {
    /// Gives every text that is there.
    pub(super) fn walk(&self, document: &Value, give: &mut dyn FnMut(String)) {
        fn follow(value: &Value, rest: &[String], give: &mut dyn FnMut(String)) {
            let Some((name, rest)) = rest.split_first() else {
                return match value {
                    Value::Array(items) => {
                        items.iter().filter_map(Value::as_str).for_each(|text| give(text.to_owned()));
                    }
                    value => image(value, give),
                };
            };
            match value {
                Value::Array(items) if name == "*" => items.iter().for_each(|item| follow(item, rest, give)),
                Value::Object(fields) if name == "*" => fields.values().for_each(|field| follow(field, rest, give)),
                Value::Object(fields) => fields.get(name).into_iter().for_each(|field| follow(field, rest, give)),
                _ => {}
            }
        }
        match document.get("items").and_then(Value::as_array) {
            Some(items) => items.iter().for_each(|item| follow(item, &self.0, give)),
            None => follow(document, &self.0, give),
        }
    }
}

impl FromStr for Path {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names: Vec<_> = text.trim_start_matches('.').split('.').map(str::to_owned).collect();
        if names.iter().any(String::is_empty) { Err(InvalidPath) } else { Ok(Self(names)) }
    }
}

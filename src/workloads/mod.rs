//! Images that Kubernetes objects name: found in YAML and JSON as people keep them, pipe them and get them from a cluster.

mod look_alike;
mod places;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::oci::ImageName;

pub use places::{InvalidPath, Path};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The images, by their full names.
    pub images: BTreeMap<String, ImageName>,
    /// Texts that look like images and were not taken, and where.
    pub look_alikes: BTreeMap<String, String>,
    /// Texts in the place of an image that name none, and why.
    pub invalid: Vec<String>,
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{file} is no YAML: {problem}")]
pub struct InvalidFile {
    file: String,
    problem: String,
}

/// `kubectl apply` keeps the whole object in this annotation once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A parameter that is filled in inside the cluster, as Tekton and Argo do, begins like this. What should have been filled in
/// before (`${IMAGE}`) is a mistake: an image would be missing.
const PARAMETER: &str = "$(";

/// Objects are not nested deeper than this; what is, is not looked at.
const DEPTH_MAX: usize = 64;

// === impl Found ===

impl Found {
    /// Adds what the documents of a file name. Paths are further places to look at, see [`Path`].
    pub fn read(&mut self, file: &str, text: &str, paths: &[Path]) -> Result<(), InvalidFile> {
        // What a cluster prints is JSON, and too much of it for a reader that must beware of YAML's tricks.
        let json = || serde_json::from_str(text).map(|document| vec![document]).ok();
        let documents: Vec<Value> = match text.trim_start().starts_with('{').then(json).flatten() {
            Some(documents) => documents,
            None => serde_saphyr::from_multiple(text)
                .map_err(|error| InvalidFile { file: file.to_owned(), problem: error.to_string() })?,
        };
        for document in &documents {
            let place = name_of(file, document);
            let mut taken = Vec::new();
            places::walk(document, &mut |text| taken.push(text));
            for path in paths {
                path.walk(document, &mut |text| taken.push(text));
            }
            for text in taken {
                self.take(&text, &place);
            }
            self.look_around(document, &place, 0);
        }
        Ok(())
    }

    /// To be called at the end: what was taken somewhere looks like an image everywhere.
    #[must_use]
    pub fn done(mut self) -> Self {
        let images = &self.images;
        self.look_alikes
            .retain(|text, _| !text.parse::<ImageName>().is_ok_and(|image| images.contains_key(&image.to_string())));
        self.invalid.sort_unstable();
        self.invalid.dedup();
        self
    }

    fn take(&mut self, text: &str, place: &str) {
        if text.contains(PARAMETER) {
            self.look_alikes.entry(text.to_owned()).or_insert_with(|| place.to_owned());
            return;
        }
        match text.parse::<ImageName>() {
            Ok(image) => _ = self.images.insert(image.to_string(), image),
            Err(error) => self.invalid.push(format!("{place}: {text:?} names no image: {error}")),
        }
    }

    fn look_around(&mut self, value: &Value, place: &str, depth: usize) {
        if depth > DEPTH_MAX {
            return;
        }
        match value {
            Value::String(text) => {
                for candidate in look_alike::in_text(text) {
                    self.look_alikes.entry(candidate.to_owned()).or_insert_with(|| place.to_owned());
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.look_around(item, place, depth + 1)),
            Value::Object(fields) => {
                for (name, field) in fields {
                    if name != LAST_APPLIED {
                        self.look_around(field, place, depth + 1);
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// How people call an object: its file, its kind, its name.
fn name_of(file: &str, document: &Value) -> String {
    let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
    match (text("/kind"), text("/metadata/name")) {
        (Some(kind), Some(name)) => format!("{file} ({kind} {name})"),
        (Some(kind), None) => format!("{file} ({kind})"),
        (None, _) => file.to_owned(),
    }
}

#[cfg(test)]
mod tests;

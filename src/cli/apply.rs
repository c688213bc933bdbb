//! `mosaic apply -f`: makes or changes agents from files.

use super::output::out;
use super::{Failure, Global};
use clap::Args;
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Most files of one folder.
const FILES_MAX: usize = 1000;

/// Make or change agents from files
#[derive(Args, Debug)]
pub(super) struct Apply {
    /// YAML or JSON file, folder of them, or - for standard input; repeatable
    #[arg(short, long = "filename", value_name = "FILE|FOLDER|-", required = true)]
    files: Vec<PathBuf>,
}

impl Apply {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        // Everything is read before anything is sent: a mistake in the last file changes nothing.
        let mut objects = Vec::new();
        for file in &self.files {
            objects.extend(read(file)?);
        }
        if objects.is_empty() {
            return Err(Failure::usage("there is no object in what was given"));
        }
        let client = global.client()?;
        let mut failed = 0;
        for (source, object) in &objects {
            let name = name_of(source, object)?;
            // A namespace in the file goes before the one of the command line.
            let own = object["metadata"]["namespace"].as_str();
            match client.apply(&name, Some(own.unwrap_or(&global.namespace)), object).await {
                Ok(written) => out!("agent/{name} {}", written.result),
                Err(error) => {
                    failed += 1;
                    eprintln!("error: agent/{name} ({source}): {error}");
                    error.hint().into_iter().for_each(|hint| eprintln!("hint: {hint}"));
                }
            }
        }
        if failed == 0 { Ok(()) } else { Err(Failure::failed(format!("{failed} of {} objects were not applied", objects.len()))) }
    }
}

fn name_of(source: &str, object: &Value) -> Result<String, Failure> {
    if object["kind"] != "Agent" {
        return Err(Failure::usage(format!("{source}: kind {} cannot be applied; only Agent can", object["kind"])));
    }
    let name = object["metadata"]["name"].as_str();
    name.map(str::to_owned).ok_or_else(|| Failure::usage(format!("{source}: metadata.name is missing")))
}

fn read(path: &Path) -> Result<Vec<(String, Value)>, Failure> {
    if path == Path::new("-") {
        let mut text = String::new();
        let read = std::io::stdin().take(FILE_BYTES_MAX).read_to_string(&mut text);
        read.map_err(|e| Failure::failed(format!("failed to read standard input: {e}")))?;
        return parse("standard input", &text);
    }
    let fail = |e: std::io::Error| Failure::usage(format!("failed to read {}: {e}", path.display()));
    if !std::fs::metadata(path).map_err(fail)?.is_dir() {
        return read_file(path);
    }
    let entries = std::fs::read_dir(path).map_err(fail)?.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    let is_ours = |p: &PathBuf| p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
    let mut files: Vec<PathBuf> = entries.into_iter().map(|e| e.path()).filter(is_ours).collect();
    files.sort_unstable();
    if files.len() > FILES_MAX {
        return Err(Failure::usage(format!("{} holds {} files; at most {FILES_MAX} are applied at once", path.display(), files.len())));
    }
    let mut objects = Vec::new();
    for file in files {
        objects.extend(read_file(&file)?);
    }
    Ok(objects)
}

fn read_file(path: &Path) -> Result<Vec<(String, Value)>, Failure> {
    let fail = |e: std::io::Error| Failure::usage(format!("failed to read {}: {e}", path.display()));
    let mut text = String::new();
    let mut file = std::fs::File::open(path).map_err(fail)?.take(FILE_BYTES_MAX + 1);
    if file.read_to_string(&mut text).map_err(fail)? as u64 > FILE_BYTES_MAX {
        return Err(Failure::usage(format!("{} is larger than {FILE_BYTES_MAX} bytes", path.display())));
    }
    parse(&path.display().to_string(), &text)
}

/// All objects of a text: JSON is YAML too, documents are parted by `---`, and a `List` is what is in it.
fn parse(source: &str, text: &str) -> Result<Vec<(String, Value)>, Failure> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| Failure::usage(format!("{source}: {e}")))?;
    let mut objects = Vec::new();
    for mut document in documents.into_iter().filter(|d| !d.is_null()) {
        let is_list = document["kind"] == "List";
        match document.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) if is_list => objects.extend(items),
            _ => objects.push(document),
        }
    }
    if let Some(other) = objects.iter().find(|o| !o.is_object()) {
        return Err(Failure::usage(format!("{source}: {other} is no object")));
    }
    Ok(objects.into_iter().map(|o| (source.to_owned(), o)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_lists_and_json_give_their_objects() {
        let names = |text: &str| -> Vec<String> {
            parse("test", text).unwrap().iter().map(|(_, o)| o["metadata"]["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names("kind: Agent\nmetadata: {name: a}\n---\n---\nkind: Agent\nmetadata: {name: b}\n"), ["a", "b"]);
        assert_eq!(names(r#"{"kind":"List","items":[{"metadata":{"name":"c"}}]}"#), ["c"]);
        assert!(parse("test", "just text").is_err());
        assert!(parse("test", "a: [").is_err());
    }
}

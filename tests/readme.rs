//! What the documents say, held against the code: the families listed, the program shown, the files linked.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use rillm::models::Registry;
use rillm::tensor::cpu::Cpu;

const README: &str = include_str!("../README.md");

/// The lines of the section under the heading `title`.
fn section(title: &str) -> impl Iterator<Item = &str> {
    let after = README.lines().skip_while(move |line| *line != title).skip(1);
    after.take_while(|line| !line.starts_with('#'))
}

#[test]
fn the_table_of_families_is_the_registry() {
    let families = rillm::families();
    let row = |f: &rillm::FamilyInfo| format!("| `{}` | {} |", f.model_type, f.models);
    let listed: Vec<_> = section("### Families").filter(|line| line.starts_with("| `")).skip(1).collect();
    assert_eq!(listed, families.iter().map(row).collect::<Vec<_>>());
    let known: Vec<_> = families.iter().map(|f| f.model_type).collect();
    assert_eq!(known, Registry::<Cpu>::default().model_types());
}

#[test]
fn the_program_is_an_example() {
    let example = include_str!("../examples/embed_in_app.rs");
    let program: Vec<_> = example.lines().skip_while(|l| l.starts_with("//!") || l.is_empty()).collect();
    let shown = section("## Use it").skip_while(|line| *line != "```rust").skip(1);
    let shown: Vec<_> = shown.take_while(|line| *line != "```").collect();
    assert_eq!(shown, program);
    assert!(shown.len() <= 15, "{} lines", shown.len());
}

#[test]
fn the_examples_are_all_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = root.join("examples").read_dir().unwrap().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.extension().is_some_and(|e| e == "rs")) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            README.contains(&format!("| [`{name}`](examples/{name}.rs) |")),
            "{name} is not in the README"
        );
    }
}

#[test]
fn links_between_files_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut checked = 0;
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let file = link.split('#').next().unwrap();
            if !link.starts_with("http") {
                assert!(root.join(file).exists(), "{document}: {link}");
                checked += 1;
            }
        }
    }
    assert!(checked > 40, "only {checked} links");
}

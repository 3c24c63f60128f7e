//! The house's law, which one crate cannot ask the compiler to keep: who may name whom, and where
//! things are.

use std::{fs, path::Path};

/// What only these rooms may name. A room is a path's beginning below `src/`.
const OWNED: [(&str, &[&str]); 9] = [
    ("diesel", &["store/"]),
    ("redis::", &["budget/", "local/"]),
    ("aws_sdk_sqs", &["queue/", "local/"]),
    ("aws_sdk_s3", &["results/", "local/"]),
    ("actix_web", &["api/"]),
    ("reqwest", &["pack/url/"]),
    ("clap::", &["cli.rs", "main.rs"]),
    ("Claimed::won(", &["store/"]),
    ("Settled::won(", &["store/"]),
];

/// What a room may never name: arrows only point down.
const FORBIDDEN: [(&str, &[&str]); 9] = [
    ("domain/", &["crate::", "tokio", "tracing", "std::env"]),
    ("wire/", &["tokio", "tracing", "crate::store", "crate::flow", "crate::api"]),
    (
        "store/",
        &["crate::budget", "crate::queue", "crate::results", "crate::flow", "crate::api", "crate::worker"],
    ),
    (
        "budget/",
        &["crate::store", "crate::queue", "crate::results", "crate::flow", "crate::api", "crate::worker"],
    ),
    (
        "queue/",
        &["crate::store", "crate::budget", "crate::results", "crate::flow", "crate::api", "crate::worker"],
    ),
    (
        "results/",
        &["crate::store", "crate::budget", "crate::queue", "crate::flow", "crate::api", "crate::worker"],
    ),
    (
        "pack/",
        &["crate::store", "crate::budget", "crate::queue", "crate::results", "crate::flow", "crate::api"],
    ),
    ("flow/", &["crate::api", "crate::worker", "crate::reaper", "crate::role", "crate::cli", "crate::local"]),
    (
        "api/",
        &["crate::budget", "crate::queue", "crate::results", "crate::worker", "crate::reaper", "crate::role"],
    ),
];

fn sources(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read_to_string(&path).unwrap_or_default()));
        }
    }
}

fn tree(below: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(below), &mut found);
    found
}

/// Lines of code, with their numbers; comments may name anything.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(at, line)| (at + 1, line))
}

#[test]
fn everyone_names_only_what_is_theirs() {
    let mut wrong = Vec::new();
    for (path, text) in tree("src") {
        let room = path.strip_prefix("src/").unwrap();
        for (number, line) in code(&text) {
            for (name, rooms) in OWNED {
                if line.contains(name)
                    && !rooms.iter().any(|owner| room.starts_with(owner))
                    && path.ends_with(".rs")
                {
                    wrong.push(format!("{path}:{number}: only {rooms:?} may name {name}"));
                }
            }
            for (owner, names) in FORBIDDEN {
                for name in names.iter().filter(|name| room.starts_with(owner) && line.contains(**name)) {
                    wrong.push(format!("{path}:{number}: {owner} may not name {name}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_says_what_it_is() {
    let silent: Vec<_> = tree("src")
        .into_iter()
        .chain(tree("tests"))
        .filter(|(path, text)| path.ends_with(".rs") && !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "without a first line of //!: {silent:?}");
}

#[test]
fn every_script_and_statement_is_used_and_says_how() {
    let sources = tree("src");
    for (path, text) in &sources {
        let name = path.rsplit('/').next().unwrap();
        if !(name.ends_with(".lua") || name.ends_with(".sql")) {
            continue;
        }
        let used = sources.iter().any(|(other, text)| other.ends_with(".rs") && text.contains(name));
        assert!(used, "nothing includes {path}");
        if let Some(stem) = name.strip_suffix(".sql") {
            assert!(
                text.starts_with(&format!("-- {stem}: ")),
                "{path} begins with its name, for pg_stat_activity"
            );
        }
        if let Some(stem) = name.strip_suffix(".lua") {
            let keys: usize =
                stem.rsplit('-').next().unwrap().parse().expect("the number of KEYS is in the name");
            let highest = (1..10).filter(|number| text.contains(&format!("KEYS[{number}]"))).max();
            assert_eq!(highest, Some(keys), "{path}");
            assert!(
                text.starts_with("--[[") && text.contains("Reply") && text.contains("KEYS"),
                "{path} has no header"
            );
            assert!(!text.contains("tostring"), "{path}: no tostring");
            // Windows expire, and are the only thing that does.
            let expires =
                |line: &&str| line.contains("EXPIRE") && !line.contains("'PEXPIRE', KEYS[4 + at], ARGV[9]");
            let money = stem != "poll-2";
            assert!(!money || text.lines().find(expires).is_none(), "{path}: no TTL on money");
        }
    }
}

#[test]
fn every_setting_has_a_default_and_every_default_a_setting() {
    let table =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/table.rs")).unwrap();
    let defaults: toml::Table =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/default.toml"))
            .unwrap()
            .parse()
            .unwrap();
    let mut settings: Vec<_> = table
        .lines()
        .filter_map(|line| line.trim().strip_prefix('"')?.split_once("\", Kind::"))
        .map(|(name, _)| name.to_lowercase())
        .filter(|name| name != "dpp_env")
        .collect();
    let mut keys: Vec<_> = defaults.keys().cloned().collect();
    settings.sort();
    keys.sort();
    assert_eq!(settings, keys);
    assert!(settings.len() > 20, "the table was read");
}

#[test]
fn the_promise_says_what_each_fault_leaves() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/money.md")).unwrap();
    let missing: Vec<_> = dpp::flow::crash::CrashPoint::ALL
        .into_iter()
        .filter(|point| !page.contains(&format!("`{point:?}`")))
        .collect();
    assert!(missing.is_empty(), "docs/money.md does not say what these leave: {missing:?}");
}

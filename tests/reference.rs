//! `docs/reference.md` is the contract's comments on one page, and `docs/flags.md` all flags.
//!
//! Must hold: the pages are what this writes from the contract and from the command line; if they
//! are not, the test says how to renew them. It is written here, and not by a plugin of the compiler, since the descriptor with its
//! comments is in the binary anyway, for reflection.

use std::{
    collections::BTreeSet,
    env,
    fmt::{self, Write as _},
    fs,
    path::Path,
};

use clap::{Arg, CommandFactory as _};
use prost_reflect::{
    DescriptorPool, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor,
    ServiceDescriptor, prost_types::source_code_info::Location,
};
use runs_gateway::{config::Cli, v1};

const PACKAGE: &str = "runsgateway.v1";
const INTRODUCTION: &str = "# Reference

Written from the comments in `proto/runsgateway/v1` by `UPDATE_REFERENCE=1 cargo test --test reference`; do not edit.
";

const FLAGS: &str = "# Flags

Written from `runs-gateway serve --help` and those of the other commands by `UPDATE_REFERENCE=1 cargo test --test reference`; do not edit.

The variable of `--some-flag` is `RUNS_GATEWAY_SOME_FLAG`; a flag wins over its variable. A variable of that form that no command has is
refused by `serve` and `dev`, and so is one that only `run` and `watch` have, such as `RUNS_GATEWAY_TOKEN_FILE`: it may be a misspelt one of the
gateway's own. `demo` takes none of them; the other commands warn of one that no command has. A duration is written `500ms`, `30s`, `10m`.
";

#[test]
fn the_reference_says_what_the_contract_says() {
    is_current("docs/reference.md", &page().expect("a page"));
}

#[test]
fn the_list_of_flags_says_what_the_help_says() {
    is_current("docs/flags.md", &flags().expect("a page"));
}

/// Renews the page if that is asked for, and compares it.
fn is_current(name: &str, page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if env::var_os("UPDATE_REFERENCE").is_some() {
        fs::write(&path, page).expect("docs/ can be written to");
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == page,
        "{name} is not current: UPDATE_REFERENCE=1 cargo test --test reference"
    );
}

/// Flags of `serve` by their headings, and what the other commands have beside these.
fn flags() -> Result<String, fmt::Error> {
    let mut page = FLAGS.to_owned();
    let program = Cli::command();
    let mut listed = BTreeSet::new();
    let titles = [
        ("serve", "`serve`"),
        ("dev", "`dev`"),
        ("healthcheck", "`healthcheck`"),
        ("run", "`run`, and `watch` but for the assistant"),
        ("proto", "`proto`"),
    ];
    for (name, title) in titles {
        let command = program.find_subcommand(name).expect("a command");
        let mut headings: Vec<(String, Vec<&Arg>)> = Vec::new();
        for arg in command.get_arguments() {
            let Some(flag) = arg.get_long() else { continue };
            if !listed.insert(flag) && name != "healthcheck" {
                continue;
            }
            let heading = arg.get_help_heading().unwrap_or("General");
            match headings.iter_mut().find(|(known, _)| known == heading) {
                Some((_, args)) => args.push(arg),
                None => headings.push((heading.to_owned(), vec![arg])),
            }
        }
        for (heading, args) in headings {
            let of = if heading == "General" { "" } else { ": " };
            let heading = if of.is_empty() { "" } else { &heading };
            write!(
                page,
                "\n## {title}{of}{heading}\n\n| flag | default | meaning |\n|---|---|---|\n"
            )?;
            for arg in args {
                add_flag(&mut page, arg)?;
            }
        }
    }
    Ok(page)
}

fn add_flag(page: &mut String, arg: &Arg) -> fmt::Result {
    let help = arg.get_long_help().or(arg.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let defaults = arg.get_default_values().iter();
    let defaults: Vec<_> = defaults.map(|value| value.to_string_lossy()).collect();
    let takes_value = arg.get_action().takes_values();
    let default = match defaults.join(",") {
        default if default.is_empty() || !takes_value => String::new(),
        default => format!("`{default}`"),
    };
    let flag = arg.get_long().unwrap_or_default();
    let other = arg
        .get_env()
        .map(|name| format!(". Variable: `{}`", name.to_string_lossy()));
    let help = help.replace('|', "\\|") + other.as_deref().unwrap_or_default();
    writeln!(page, "| `--{flag}` | {default} | {help} |")
}

fn page() -> Result<String, fmt::Error> {
    let pool = DescriptorPool::decode(v1::DESCRIPTOR).expect("a descriptor set");
    let mut page = INTRODUCTION.to_owned();
    for service in pool
        .services()
        .filter(|service| service.package_name() == PACKAGE)
    {
        add_service(&mut page, &service)?;
    }
    for file in pool.files().filter(|file| file.package_name() == PACKAGE) {
        let (messages, enums) = (file.messages(), file.enums());
        if messages.len() + enums.len() == 0 {
            continue;
        }
        let name = file.name().rsplit('/').next().unwrap_or_default();
        // 2 is the field of a file's descriptor that names its package.
        write!(page, "\n## {name}\n\n{}", comment(&file, &[2]))?;
        for kind in enums {
            add_enum(&mut page, &kind)?;
        }
        for message in messages {
            add_message(&mut page, &message)?;
        }
    }
    Ok(page)
}

fn add_service(page: &mut String, service: &ServiceDescriptor) -> fmt::Result {
    write!(
        page,
        "\n## {}\n\n{}",
        service.name(),
        comment(&service.parent_file(), service.path())
    )?;
    for method in service.methods() {
        let streamed = |message: &MessageDescriptor, streams| {
            format!(
                "{}{}",
                if streams { "stream of " } else { "" },
                link(message.name())
            )
        };
        let input = streamed(&method.input(), method.is_client_streaming());
        let output = streamed(&method.output(), method.is_server_streaming());
        write!(page, "\n### {}\n\n{input} → {output}\n\n", method.name())?;
        page.push_str(&comment(&service.parent_file(), method.path()));
    }
    Ok(())
}

fn add_enum(page: &mut String, kind: &EnumDescriptor) -> fmt::Result {
    let file = kind.parent_file();
    write!(
        page,
        "\n### {}\n\n{}\n| value | number | |\n|---|---|---|\n",
        kind.name(),
        comment(&file, kind.path())
    )?;
    for value in kind.values() {
        writeln!(
            page,
            "| `{}` | {} | {} |",
            value.name(),
            value.number(),
            cell(&comment(&file, value.path()))
        )?;
    }
    Ok(())
}

fn add_message(page: &mut String, message: &MessageDescriptor) -> fmt::Result {
    let file = message.parent_file();
    write!(
        page,
        "\n### {}\n\n{}",
        message.name(),
        comment(&file, message.path())
    )?;
    if message.fields().len() == 0 {
        return Ok(());
    }
    page.push_str("\n| field | number | type | |\n|---|---|---|---|\n");
    for field in message.fields() {
        let said = cell(&comment(&file, field.path()));
        writeln!(
            page,
            "| `{}` | {} | {} | {said} |",
            field.name(),
            field.number(),
            type_of(&field)
        )?;
    }
    Ok(())
}

fn type_of(field: &FieldDescriptor) -> String {
    if let Some(entry) = field.kind().as_message().filter(|_| field.is_map()) {
        return format!(
            "map of {} to {}",
            kind(&entry.map_entry_key_field()),
            kind(&entry.map_entry_value_field())
        );
    }
    let prefix = match field.containing_oneof() {
        Some(_) if field.field_descriptor_proto().proto3_optional() => "optional ".to_owned(),
        Some(one) => format!("one of `{}`: ", one.name()),
        None if field.is_list() => "list of ".to_owned(),
        None => String::new(),
    };
    format!("{prefix}{}", kind(field))
}

fn kind(field: &FieldDescriptor) -> String {
    match field.kind() {
        Kind::Message(message) if message.package_name() != PACKAGE => {
            format!("`{}`", message.full_name())
        }
        Kind::Message(message) => link(message.name()),
        Kind::Enum(kind) => link(kind.name()),
        scalar => format!("{scalar:?}"),
    }
}

fn link(name: &str) -> String {
    format!("[`{name}`](#{})", name.to_lowercase())
}

/// The comment above what is at `path` in a file, with a line break at its end.
fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file
        .file_descriptor_proto()
        .source_code_info
        .as_ref()
        .expect("comments");
    let text = info
        .location
        .iter()
        .find(|location| location.path == path)
        .and_then(|location: &Location| location.leading_comments.clone());
    let text = text.unwrap_or_default();
    text.lines()
        .flat_map(|line| [line.strip_prefix(' ').unwrap_or(line), "\n"])
        .collect()
}

/// A comment as it may stand in a table.
fn cell(comment: &str) -> String {
    comment.trim().replace('\n', " ").replace('|', "\\|")
}

//! The arrows between the files of `src/`: none points up the map in `src/lib.rs`, and no files
//! stand in a circle.
//!
//! An arrow is a `use` of another file's item. A re-export is none: it leads on to the file that
//! has the item. Tests inside of files may use what they like.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use syn::{Item, ItemUse, UseTree, Visibility, visit::Visit};

/// A module by its path below `src`; the crate's root has none.
type Module = Vec<String>;

/// The files of `src`, each by its module, and what each uses.
#[derive(Default)]
struct Sources {
    files: BTreeMap<Module, File>,
}

#[derive(Default)]
struct File {
    uses: Vec<Module>,
    /// Names that it re-exports, and what they stand for.
    exports: BTreeMap<String, Module>,
}

/// Collects the `use` items of a file.
struct Uses<'a> {
    module: &'a Module,
    file: &'a mut File,
}

impl<'ast> Visit<'ast> for Uses<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if let Item::Mod(inner) = item
            && inner.attrs.iter().any(|it| it.path().is_ident("cfg"))
        {
            return;
        }
        syn::visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let is_export = !matches!(item.vis, Visibility::Inherited);
        let mut leaves = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut leaves);
        for (path, name) in leaves {
            let Some(path) = absolute(self.module, &path) else {
                continue;
            };
            if is_export {
                self.file.exports.insert(name, path);
            } else {
                self.file.uses.push(path);
            }
        }
    }
}

/// Every path that a tree names, and the name that it has then.
fn flatten(tree: &UseTree, path: &mut Vec<String>, leaves: &mut Vec<(Vec<String>, String)>) {
    let depth = path.len();
    match tree {
        UseTree::Path(inner) => {
            path.push(inner.ident.to_string());
            flatten(&inner.tree, path, leaves);
        }
        UseTree::Group(group) => {
            for inner in &group.items {
                flatten(inner, path, leaves);
            }
        }
        UseTree::Name(name) => {
            path.push(name.ident.to_string());
            leaves.push((path.clone(), name.ident.to_string()));
        }
        UseTree::Rename(name) => {
            path.push(name.ident.to_string());
            leaves.push((path.clone(), name.rename.to_string()));
        }
        UseTree::Glob(_) => leaves.push((path.clone(), "*".to_owned())),
    }
    path.truncate(depth);
}

/// A path from the crate's root; `None` if it is another crate's.
fn absolute(module: &Module, path: &[String]) -> Option<Module> {
    let supers = path.iter().take_while(|it| *it == "super").count();
    let (base, rest) = match path[0].as_str() {
        "crate" => (Vec::new(), &path[1..]),
        "self" => (module.clone(), &path[1..]),
        "super" => (module[..module.len() - supers].to_vec(), &path[supers..]),
        _ => return None,
    };
    let rest = rest.iter().filter(|it| *it != "self").cloned();
    Some(base.into_iter().chain(rest).collect())
}

impl Sources {
    fn read() -> Self {
        let mut sources = Self::default();
        sources.folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[]);
        sources
    }

    fn folder(&mut self, folder: &Path, module: &[String]) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().expect("a name").to_string_lossy();
            let mut module = module.to_vec();
            if !["mod", "lib"].contains(&&*name) {
                module.push(name.into_owned());
            }
            if path.is_dir() {
                self.folder(&path, &module);
            }
            if path.extension().is_none_or(|it| it != "rs") {
                continue;
            }
            if path.extension().is_none_or(|it| it != "rs") {
                continue;
            }
            let text = fs::read_to_string(&path).expect("text");
            let parsed = syn::parse_file(&text).expect("Rust");
            let mut file = File::default();
            Uses {
                module: &module,
                file: &mut file,
            }
            .visit_file(&parsed);
            self.files.insert(module, file);
        }
    }

    /// The file that has what a path names, wherever it is re-exported.
    fn home(&self, path: &[String]) -> Module {
        let of_file = |length: &usize| self.files.contains_key(&path[..*length]);
        let length = (0..=path.len()).rev().find(of_file).expect("the root");
        let (module, rest) = path.split_at(length);
        let exports = &self.files[module].exports;
        match rest
            .split_first()
            .and_then(|(name, rest)| Some((exports.get(name)?, rest)))
        {
            Some((target, rest)) => self.home(&[target, rest].concat()),
            None => module.to_vec(),
        }
    }

    /// Which files each file uses.
    fn arrows(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let arrows = self.files.iter().map(|(module, file)| {
            let used = file.uses.iter().map(|path| self.home(path));
            (module, used.filter(|used| used != module).collect())
        });
        arrows.collect()
    }
}

/// The modules of the map, from the top down.
fn map() -> Vec<String> {
    let text = include_str!("../src/lib.rs");
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | "));
    let names = rows.filter_map(|row| Some(row.split_once(" | ")?.0));
    let names = names.flat_map(|names| names.split(", "));
    names
        .filter(|name| *name != "module")
        .map(|name| name.trim_matches(['[', ']', '`']).to_owned())
        .collect()
}

fn name(module: &Module) -> String {
    module.join("::")
}

#[test]
fn no_arrow_points_up_the_map() {
    let (sources, map) = (Sources::read(), map());
    let floor = |module: &Module| {
        let top = module.first()?;
        (top != "main").then(|| {
            let floor = map.iter().position(|it| it == top);
            floor.unwrap_or_else(|| panic!("{top} is not on the map in src/lib.rs"))
        })
    };
    let mut up = Vec::new();
    for (module, used) in sources.arrows() {
        for used in used {
            if let (Some(from), Some(to)) = (floor(module), floor(&used))
                && to < from
            {
                up.push(format!("{} uses {}", name(module), name(&used)));
            }
        }
    }
    assert!(up.is_empty(), "{up:#?}");
    let known: BTreeSet<_> = sources.files.keys().filter_map(|it| it.first()).collect();
    let unknown: Vec<_> = map.iter().filter(|it| !known.contains(it)).collect();
    assert!(
        unknown.is_empty(),
        "on the map, and not in src: {unknown:?}"
    );
}

#[test]
fn no_files_stand_in_a_circle() {
    let sources = Sources::read();
    let mut left = sources.arrows();
    // What uses nothing that is left stands in no circle.
    loop {
        let before = left.len();
        let files: BTreeSet<_> = left.keys().map(|it| (*it).clone()).collect();
        left.retain(|_, used| used.iter().any(|it| files.contains(it)));
        if left.len() == before {
            break;
        }
    }
    // Nor does what nobody uses that is left.
    loop {
        let before = left.len();
        let used: BTreeSet<_> = left.values().flatten().cloned().collect();
        left.retain(|module, _| used.contains(*module));
        if left.len() == before {
            break;
        }
    }
    let files: Vec<_> = left.keys().map(|module| name(module)).collect();
    assert!(files.is_empty(), "circles among {files:#?}");
}

//! The numbers in the tree (`budget.json`), and what is held against them.
//!
//! Must hold: a number is compared only with one that the same tools gave. Another compiler makes
//! other instructions of the same code, and another C library copies in another way.

use std::{collections::BTreeMap, fs, process::Command};

use serde_json::{Value, json};

const PATH: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/benches/instructions/budget.json"
);

/// How far a count may be from its number.
const TOLERANCE: f64 = 0.02;

/// Instructions by the names of cases, and the tools that they were counted with.
pub(crate) struct Budget {
    pub(crate) tools: BTreeMap<String, String>,
    pub(crate) instructions: BTreeMap<String, u64>,
}

impl Budget {
    /// The numbers in the tree, if there are any.
    pub(crate) fn read() -> Option<Self> {
        let text = fs::read_to_string(PATH).ok()?;
        let budget: Value = serde_json::from_str(&text).expect("benches/instructions/budget.json");
        let members = |name: &str| budget[name].as_object().cloned().into_iter().flatten();
        Some(Self {
            tools: members("tools")
                .filter_map(|(tool, version)| Some((tool, version.as_str()?.to_owned())))
                .collect(),
            instructions: members("instructions")
                .filter_map(|(case, count)| Some((case, count.as_u64()?)))
                .collect(),
        })
    }

    pub(crate) fn write(&self) {
        let budget = json!({"tools": self.tools, "instructions": self.instructions});
        let text = serde_json::to_string_pretty(&budget).expect("JSON") + "\n";
        fs::write(PATH, text).expect("the tree can be written to");
    }

    /// How far a count is from the number of its case, as a part of that; `None` if it has none.
    pub(crate) fn deviation(&self, case: &str, count: u64) -> Option<f64> {
        let number = *self.instructions.get(case)?;
        #[expect(clippy::cast_precision_loss, reason = "no count has so many digits")]
        Some(count as f64 / number as f64 - 1.0)
    }

    /// Whether a count is near enough to the number of its case.
    pub(crate) fn holds(&self, case: &str, count: u64) -> bool {
        self.deviation(case, count)
            .is_some_and(|deviation| deviation.abs() <= TOLERANCE)
    }
}

/// The tools that numbers depend on, and what they say of their versions.
pub(crate) fn tools() -> BTreeMap<String, String> {
    let first_line = |command: &str, word: &str| {
        let said = Command::new(command).arg(word).output();
        let said = said.map(|said| said.stdout).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        said.lines().next().unwrap_or_default().to_owned()
    };
    // Without the revision of its package: fixes of security copy as it did before.
    let libc = first_line("ldd", "--version");
    let libc = libc.rsplit(' ').next().unwrap_or_default().to_owned();
    // Callgrind shows the same processor everywhere, but for what the machine cannot do.
    let processor = if has_avx2() {
        "with AVX2"
    } else {
        "without AVX2"
    };
    let processor = format!("{} {processor}", std::env::consts::ARCH);
    BTreeMap::from([
        ("rustc".to_owned(), first_line("rustc", "--version")),
        ("valgrind".to_owned(), first_line("valgrind", "--version")),
        ("libc".to_owned(), libc),
        ("processor".to_owned(), processor),
    ])
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

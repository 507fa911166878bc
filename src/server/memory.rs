//! How much memory there is for this program: what its container may have, or the machine's.

use std::{fs, path::Path};

/// What may be held for callers where not even the machine says what it has.
const FALLBACK: usize = 1 << 30;

/// As many bytes as may be held for callers where nobody says how many: a quarter. The rest is for
/// what is not counted byte by byte, the event log, and what the allocator has not given back:
/// under attack (`tests/abuse/held.rs`) the program stays below three quarters of its container.
pub(super) fn held_bytes() -> usize {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let read = |path: &Path| fs::read_to_string(path).ok();
    let machine = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let limits = group_limits(&groups, read).chain(total(&machine));
    limits.min().map_or(FALLBACK, |bytes| bytes / 4)
}

/// As many connections to an upstream by HTTP/1.1 as may be kept where so much may be held for
/// callers: what they keep is not counted, and is an eighth of that at most.
pub(super) fn kept_connections(held_bytes: usize) -> usize {
    /// The largest buffer of a connection, in bytes: hyper's, and what its allocation is rounded to.
    const BUFFER: usize = 512 << 10;
    (held_bytes / 8 / BUFFER).max(1)
}

/// The limits of the groups (v2) that the process is in, and of those above them. In a container
/// of its own name space that is one, at the root.
fn group_limits(
    groups: &str,
    read: impl Fn(&Path) -> Option<String>,
) -> impl Iterator<Item = usize> {
    const ROOT: &str = "/sys/fs/cgroup";
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = Path::new(ROOT).join(group.unwrap_or_default());
    let folders = own
        .ancestors()
        .take_while(|folder| folder.starts_with(ROOT));
    let limits = folders.filter_map(|folder| read(&folder.join("memory.max"))?.trim().parse().ok());
    limits.collect::<Vec<_>>().into_iter()
}

/// The machine's memory, from `/proc/meminfo`.
fn total(meminfo: &str) -> Option<usize> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_counts_and_then_the_machine() {
        let files = |path: &Path| match path.to_str()? {
            "/sys/fs/cgroup/a/b/memory.max" => Some("max\n".to_owned()),
            "/sys/fs/cgroup/a/memory.max" => Some("268435456\n".to_owned()),
            "/sys/fs/cgroup/memory.max" => Some("1073741824\n".to_owned()),
            _ => None,
        };
        for (groups, expected) in [
            ("12:cpu:/x\n0::/a/b\n", &[256 << 20, 1 << 30][..]),
            ("0::/\n", &[1 << 30]),
            ("0::/a/../c\n", &[256 << 20, 1 << 30]),
            ("", &[1 << 30]),
        ] {
            assert_eq!(
                group_limits(groups, files).collect::<Vec<_>>(),
                expected,
                "{groups}"
            );
        }
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       2 kB\n"), Some(2048));
        assert_eq!(total("MemTotal: all of it\n"), None);
        assert!(held_bytes() > 0);
        assert_eq!([0, 64 << 20, 1 << 30].map(kept_connections), [1, 16, 256]);
    }
}

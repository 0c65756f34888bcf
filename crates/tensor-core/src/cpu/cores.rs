//! How many threads a machine is worth.

/// Threads to use unless told otherwise: one for each physical performance core that this process may run on.
pub(crate) fn default_threads() -> usize {
    let limit = std::thread::available_parallelism().map_or(1, usize::from);
    physical_cores().unwrap_or(limit).clamp(1, limit)
}

/// Physical cores among the CPUs that this process may use, without the efficiency cores of hybrid processors.
#[cfg(target_os = "linux")]
fn physical_cores() -> Option<usize> {
    let read = |path: String| std::fs::read_to_string(path).ok();
    let status = read("/proc/self/status".into())?;
    let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?;
    let mut cpus = cpu_list(allowed)?;
    if let Some(fast) = read("/sys/devices/cpu_core/cpus".into()).and_then(|l| cpu_list(&l)) {
        cpus.retain(|cpu| fast.contains(cpu));
    }
    let of = |cpu: usize, file: &str| read(format!("/sys/devices/system/cpu/cpu{cpu}/{file}"));
    // Arm: a core's share of the fastest core's capacity.
    let capacity = |cpu: usize| of(cpu, "cpu_capacity").and_then(|c| c.trim().parse::<usize>().ok());
    let most = cpus.iter().filter_map(|&cpu| capacity(cpu)).max().unwrap_or(0);
    cpus.retain(|&cpu| capacity(cpu).is_none_or(|c| 2 * c > most));
    let mut cores = Vec::new();
    for cpu in cpus {
        let siblings = of(cpu, "topology/thread_siblings_list")?;
        if !cores.contains(&siblings) {
            cores.push(siblings);
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// macOS counts performance and efficiency cores alike; elsewhere the topology is not known.
#[cfg(not(target_os = "linux"))]
fn physical_cores() -> Option<usize> {
    None
}

/// The CPUs of a kernel list such as `0-3,8`.
#[cfg(target_os = "linux")]
fn cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn default_is_within_what_the_system_allows() {
        let n = default_threads();
        assert!(n >= 1 && n <= std::thread::available_parallelism().unwrap().get());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn cpu_lists_are_read() {
        assert_eq!(cpu_list("0-2,7\n"), Some(vec![0, 1, 2, 7]));
        assert_eq!(cpu_list(" 5"), Some(vec![5]));
        assert_eq!(cpu_list("x"), None);
    }
}

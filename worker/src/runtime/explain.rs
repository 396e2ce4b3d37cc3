//! What libcontainer says of a container that it cannot make, in words for the operator.
//!
//! Pure: text in, text out; the caller looks at the files. What is not known here stays as it is.

use std::path::Path;

/// libcontainer has this many processes in a container before there is one.
const PROCESSES_AT_START: u64 = 2;
const MOUNT: (&str, &str) = ("failed to mount Mount { destination: \"", "\", typ: ");
const SOURCE: (&str, &str) = ("source: Some(\"", "\"), options: ");

/// What was asked for, as far as it can be why.
pub(super) struct Asked<'a> {
    /// 0: without limit.
    pub(super) pids: u64,
    /// Whether a path of the node is a folder, if it is there.
    pub(super) is_folder_here: &'a dyn Fn(&str) -> Option<bool>,
    /// Whether a path of the container is a folder, if it is there.
    pub(super) is_folder_inside: &'a dyn Fn(&str) -> Option<bool>,
    /// Whether a path of the node is where secrets and configs are kept for containers.
    pub(super) is_given_file: &'a dyn Fn(&str) -> bool,
}

pub(super) fn failure(message: String, asked: &Asked<'_>) -> String {
    if asked.pids > 0 && asked.pids < PROCESSES_AT_START && message.contains("failed to clone process") {
        return format!(
            "a limit of {} process is too small: making a container takes {PROCESSES_AT_START}: give a limit (--pids-limit, \
             --limit-pids) of at least {PROCESSES_AT_START}",
            asked.pids
        );
    }
    if let Some(words) = mount_failure(&message, asked) {
        return words;
    }
    // Somebody ended it while it was made: the kernel, when memory is short.
    if message.contains("BrokenChannel") {
        return format!(
            "the container's first process ended while the container was made; a limit of memory that is too small, or a mount \
             over what it needs for that, can be why (the runtime's words: {message})"
        );
    }
    message
}

fn mount_failure(message: &str, asked: &Asked<'_>) -> Option<String> {
    let target = between(message, MOUNT)?;
    let source = between(message, SOURCE).unwrap_or_default();
    let what = match (asked.is_given_file)(source) {
        true => "the secret or config".to_owned(),
        false => format!("{source:?}"),
    };
    match ((asked.is_folder_here)(source), (asked.is_folder_inside)(target)) {
        (Some(false), Some(true)) => Some(format!(
            "cannot mount {what}, which is a file, on {target:?}, which is a folder in the image: name a file in that folder as the target"
        )),
        (Some(true), Some(false)) => Some(format!(
            "cannot mount {what}, which is a folder, on {target:?}, which is a file in the image: mount a file there, or choose \
             another target"
        )),
        (_, None) if is_below_a_file(target, asked.is_folder_inside) => Some(format!(
            "cannot mount {what} on {target:?}, which is below a file in the image: choose another target"
        )),
        _ => {
            let cause = message.rsplit_once("}: ").map_or("", |(_, cause)| cause);
            Some(format!("cannot mount {what} on {target:?}: {cause}"))
        }
    }
}

fn is_below_a_file(target: &str, is_folder: &dyn Fn(&str) -> Option<bool>) -> bool {
    let above = Path::new(target).ancestors().skip(1).filter_map(Path::to_str);
    above.into_iter().find_map(is_folder) == Some(false)
}

fn between<'a>(text: &'a str, (before, after): (&str, &str)) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(found, _)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtimes_words_become_plain() {
        let mount = |source: &str, target: &str, cause: &str| {
            format!(
                "failed to create container: exec process failed with error error in executing process : failed to prepare \
                 rootfs: failed to mount Mount {{ destination: \"{target}\", typ: Some(\"bind\"), source: Some(\"{source}\"), \
                 options: Some([\"rbind\"]), uid_mappings: None, gid_mappings: None }}: {cause}"
            )
        };
        let clone = "intermediate process error failed to launch init process: failed to clone process";
        let broken = "failed to receive. \"waiting for init ready\". BrokenChannel";
        for (message, pids, want) in [
            (clone.to_owned(), 1, "a limit of 1 process is too small: making a container takes 2"),
            (clone.to_owned(), 0, clone),
            (clone.to_owned(), 9, clone),
            (broken.to_owned(), 0, "the container's first process ended while the container was made"),
            (
                mount("/file", "/etc", "syscall"),
                0,
                "cannot mount \"/file\", which is a file, on \"/etc\", which is a folder in the image: name a file",
            ),
            (
                mount("/given/0", "/etc", "syscall"),
                0,
                "cannot mount the secret or config, which is a file, on \"/etc\"",
            ),
            (
                mount("/folder", "/etc/passwd", "O_DIRECTORY"),
                0,
                "cannot mount \"/folder\", which is a folder, on \"/etc/passwd\", which is a file in the image",
            ),
            (
                mount("/folder", "/etc/passwd/a", "openat2"),
                0,
                "cannot mount \"/folder\" on \"/etc/passwd/a\", which is below",
            ),
            (mount("tmpfs", "/none", "denied"), 0, "cannot mount \"tmpfs\" on \"/none\": denied"),
            ("anything else".to_owned(), 1, "anything else"),
        ] {
            let asked = Asked {
                pids,
                is_folder_here: &|path| ["/file", "/given/0", "/folder"].contains(&path).then_some(path == "/folder"),
                is_folder_inside: &|path| ["/etc", "/etc/passwd"].contains(&path).then_some(path == "/etc"),
                is_given_file: &|path| path.starts_with("/given/"),
            };
            let said = failure(message, &asked);
            assert!(said.starts_with(want), "{said}");
        }
    }
}

//! `--cap-add` and `--cap-drop` on a service that may have added and dropped some already.

use orch_model::service::ContainerSpec;

use crate::flags::{Refusal, linux};

const ALL: &str = "ALL";
/// Not a capability: what was added, or dropped, until now goes.
const RESET: &str = "RESET";

/// What `--cap-add` and `--cap-drop` take. A service that is new has nothing to reset.
pub(super) fn named(text: &str) -> Result<String, Refusal> {
    if text.eq_ignore_ascii_case(RESET) { Ok(RESET.to_owned()) } else { linux::capability(text) }
}

pub(super) fn resets(names: &[String]) -> bool {
    names.iter().any(|name| name == RESET)
}

/// Docker's rules: to add what is dropped takes it from the dropped and no more, and the other way round; added and dropped
/// at once is added; beside `ALL` no other name is kept. Names have one form, so that the same set is the same text.
pub(super) fn change(container: &mut ContainerSpec, added: &[String], dropped: &[String]) {
    if added.is_empty() && dropped.is_empty() {
        return;
    }
    let stays = |names: &[String], given| if resets(given) { Vec::new() } else { of_one_form(names) };
    let (has, lacks) = (stays(&container.cap_add, added), stays(&container.cap_drop, dropped));
    let without_reset = |names: &[String]| names.iter().filter(|name| *name != RESET).cloned().collect::<Vec<_>>();
    let (added, dropped) = (without_reset(added), without_reset(dropped));
    let mut add = has.clone();
    let mut drop = lacks.clone();
    for name in &added {
        let was_dropped = lacks.contains(name) && !name.eq(ALL);
        drop.retain(|have| have != name);
        if !was_dropped {
            add.push(name.clone());
        }
    }
    for name in dropped.iter().filter(|name| !added.contains(name)) {
        let was_added = has.contains(name) && !name.eq(ALL);
        add.retain(|have| have != name);
        if !was_added {
            drop.push(name.clone());
        }
    }
    container.cap_add = of_one_form(&add);
    container.cap_drop = of_one_form(&drop);
}

fn of_one_form(names: &[String]) -> Vec<String> {
    // What the managers have stored is a name.
    let mut names: Vec<String> =
        names.iter().map(|name| linux::capability(name).unwrap_or_else(|_| name.clone())).collect();
    if names.iter().any(|name| name == ALL) {
        return vec![ALL.to_owned()];
    }
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_and_dropping_is_dockers() {
        let names = |text: &str| -> Vec<String> { text.split_whitespace().map(|name| named(name).unwrap()).collect() };
        for (has, lacks, added, dropped, add, drop) in [
            ("", "", "NET_ADMIN", "CHOWN", "NET_ADMIN", "CHOWN"),
            ("NET_ADMIN", "", "net_admin", "", "NET_ADMIN", ""),
            ("NET_ADMIN", "", "", "NET_ADMIN", "", ""),
            ("", "CHOWN", "CHOWN", "", "", ""),
            ("", "", "CHOWN", "CHOWN", "CHOWN", ""),
            ("SYS_TIME", "", "ALL", "CHOWN", "ALL", "CHOWN"),
            ("ALL", "", "", "ALL", "", "ALL"),
            ("SYS_TIME", "", "NET_ADMIN", "ALL", "NET_ADMIN SYS_TIME", "ALL"),
            ("SYS_TIME", "CHOWN", "RESET", "", "", "CHOWN"),
            ("SYS_TIME", "CHOWN", "", "reset", "SYS_TIME", ""),
            ("SYS_TIME", "CHOWN", "RESET NET_ADMIN", "RESET KILL", "NET_ADMIN", "KILL"),
        ] {
            let mut container =
                ContainerSpec { cap_add: names(has), cap_drop: names(lacks), ..ContainerSpec::default() };
            change(&mut container, &names(added), &names(dropped));
            let expected = (names(add), names(drop));
            assert_eq!((container.cap_add, container.cap_drop), expected, "+{has} -{lacks} add {added} drop {dropped}");
        }
    }
}

//! From a ruleset that is loaded to one that should be: as little as possible.
//!
//! A change of a service's backends replaces the rule of one chain. What a set learnt from packets, and where a turn
//! among backends stands, stays.

use std::collections::{BTreeMap, BTreeSet};

use super::{Chain, Element, Family, Rule, Ruleset, Set, Table};

/// One step. All steps of a change are carried out together or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleOp<'a> {
    AddTable(&'a Table),
    DeleteTable(Family, &'a str),
    /// Without its rules.
    AddChain(&'a Table, &'a Chain),
    AddSet(&'a Table, &'a Set),
    AddElements(&'a Table, &'a Set, &'a [Element]),
    AddElement(&'a Table, &'a Set, &'a Element),
    DeleteElement(&'a Table, &'a Set, &'a Element),
    AddRule(&'a Table, &'a Chain, &'a Rule),
    /// Deletes its rules.
    Flush(&'a Table, &'a Chain),
    DeleteChain(&'a Table, &'a Chain),
}

/// The steps from `known` (`None`: anything may be loaded) to `wanted`.
#[must_use]
pub fn changes<'a>(known: Option<&'a Ruleset>, wanted: &'a Ruleset) -> Vec<RuleOp<'a>> {
    let loaded = known.map(|ruleset| ruleset.tables.as_slice()).unwrap_or_default();
    let same = |a: &Table, b: &Table| (a.family, a.name) == (b.family, b.name);
    let mut ops = Vec::new();
    for old in loaded.iter().filter(|old| !wanted.tables.iter().any(|new| same(old, new))) {
        ops.push(RuleOp::DeleteTable(old.family, old.name));
    }
    for new in &wanted.tables {
        match loaded.iter().find(|old| same(old, new)) {
            Some(old) if can_amend(old, new) => amend(old, new, &mut ops),
            Some(_) | None => replace(new, &mut ops),
        }
    }
    ops
}

fn replace<'a>(table: &'a Table, ops: &mut Vec<RuleOp<'a>>) {
    // Made once so that there is something to delete.
    ops.extend([RuleOp::AddTable(table), RuleOp::DeleteTable(table.family, table.name), RuleOp::AddTable(table)]);
    ops.extend(table.chains.iter().map(|chain| RuleOp::AddChain(table, chain)));
    for set in &table.sets {
        ops.push(RuleOp::AddSet(table, set));
        if !set.elements.is_empty() {
            ops.push(RuleOp::AddElements(table, set, &set.elements));
        }
    }
    table.chains.iter().for_each(|chain| add_rules(table, chain, ops));
}

fn add_rules<'a>(table: &'a Table, chain: &'a Chain, ops: &mut Vec<RuleOp<'a>>) {
    ops.extend(chain.rules.iter().map(|rule| RuleOp::AddRule(table, chain, rule)));
}

/// Whether both have the same sets and the same places where packets come in.
fn can_amend(old: &Table, new: &Table) -> bool {
    let sets = |table: &Table| table.sets.iter().map(|set| (set.name, set.kind, set.counted)).collect::<Vec<_>>();
    let hooks = |table: &Table| {
        let hooked = table.chains.iter().filter(|chain| chain.hook.is_some());
        hooked.map(|chain| (chain.name.clone(), chain.hook)).collect::<Vec<_>>()
    };
    sets(old) == sets(new) && hooks(old) == hooks(new)
}

fn amend<'a>(old: &'a Table, new: &'a Table, ops: &mut Vec<RuleOp<'a>>) {
    let by_name = |table: &'a Table| table.chains.iter().map(|chain| (chain.name.as_str(), chain)).collect();
    let (before, after): (BTreeMap<_, &Chain>, BTreeMap<_, &Chain>) = (by_name(old), by_name(new));
    let added = || new.chains.iter().filter(|chain| !before.contains_key(chain.name.as_str()));
    ops.extend(added().map(|chain| RuleOp::AddChain(new, chain)));
    added().for_each(|chain| add_rules(new, chain, ops));
    for chain in &new.chains {
        if before.get(chain.name.as_str()).is_some_and(|before| before.rules != chain.rules) {
            ops.push(RuleOp::Flush(new, chain));
            add_rules(new, chain, ops);
        }
    }
    for (before, after) in old.sets.iter().zip(&new.sets) {
        let missing = |from: &'a Set, other: &'a Set| {
            let known: BTreeSet<_> = other.elements.iter().collect();
            from.elements.iter().filter(move |element| !known.contains(element))
        };
        ops.extend(missing(before, after).map(|element| RuleOp::DeleteElement(new, after, element)));
        ops.extend(missing(after, before).map(|element| RuleOp::AddElement(new, after, element)));
    }
    // Nothing jumps to them any more.
    for chain in old.chains.iter().filter(|chain| !after.contains_key(chain.name.as_str())) {
        ops.extend([RuleOp::Flush(new, chain), RuleOp::DeleteChain(new, chain)]);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::ruleset::{Destination, Expr, Hook, HookKind, Key, Point, SetKind, Turn};

    /// A table with a chain per service, each with backends 10.0.0.N.
    fn ruleset(services: &[(u8, &[u8])]) -> Ruleset {
        let name = |service: &u8| format!("s{service}");
        let element =
            |service: &u8| Element { key: Key::Addr(IpAddr::from([10, 0, 1, *service])), chain: Some(name(service)) };
        let send = |backends: &[u8]| {
            let to = |last: &u8| Destination { addr: IpAddr::from([10, 0, 0, *last]), port: None };
            Rule(vec![Expr::SendTo(Turn::Each, backends.iter().map(to).collect())])
        };
        let mut chains: Vec<_> = services.iter().map(|(s, b)| Chain::jumped_to(name(s), send(b))).collect();
        chains.push(Chain::at("output", Hook::new(HookKind::Nat, Point::Output, -100), vec![]));
        let elements = services.iter().map(|(service, _)| element(service)).collect();
        let sets = vec![Set::new("vips", SetKind::AddrChains, elements)];
        Ruleset { tables: vec![Table { family: Family::V4, name: "orch_task", sets, chains }] }
    }

    fn words(ops: &[RuleOp<'_>]) -> String {
        let word = |op: &RuleOp<'_>| match op {
            RuleOp::AddTable(_) => "+table".to_owned(),
            RuleOp::DeleteTable(..) => "-table".to_owned(),
            RuleOp::AddChain(_, chain) => format!("+{}", chain.name),
            RuleOp::AddSet(..) => "+set".to_owned(),
            RuleOp::AddElements(_, _, elements) => format!("+elements:{}", elements.len()),
            RuleOp::AddElement(_, _, element) => format!("+({element})"),
            RuleOp::DeleteElement(_, _, element) => format!("-({element})"),
            RuleOp::AddRule(_, chain, _) => format!("{}+rule", chain.name),
            RuleOp::Flush(_, chain) => format!("{}-rules", chain.name),
            RuleOp::DeleteChain(_, chain) => format!("-{}", chain.name),
        };
        ops.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn as_little_as_possible_is_changed() {
        let whole = "+table -table +table +s1 +output +set +elements:1 s1+rule";
        let none = Ruleset::default();
        for (known, wanted, expected) in [
            (None, ruleset(&[(1, &[2])]), whole),
            (Some(none.clone()), ruleset(&[(1, &[2])]), whole),
            (Some(ruleset(&[(1, &[2])])), none, "-table"),
            (Some(ruleset(&[(1, &[2])])), ruleset(&[(1, &[2])]), ""),
            (Some(ruleset(&[(1, &[2]), (2, &[3])])), ruleset(&[(1, &[2, 4]), (2, &[3])]), "s1-rules s1+rule"),
            (
                Some(ruleset(&[(1, &[2])])),
                ruleset(&[(2, &[2])]),
                "+s2 s2+rule -(10.0.1.1 : jump s1) +(10.0.1.2 : jump s2) s1-rules -s1",
            ),
        ] {
            assert_eq!(words(&changes(known.as_ref(), &wanted)), expected, "{known:?} to {wanted}");
        }
        // Another hook: the table is made anew.
        let mut other = ruleset(&[(1, &[2])]);
        other.tables[0].chains[1].hook = Some(Hook::new(HookKind::Nat, Point::Output, -90));
        assert_eq!(words(&changes(Some(&ruleset(&[(1, &[2])])), &other)), whole);
    }
}

//! Generic resources: what the operator's configuration says the node has, and what a task is told of its own.

use orch_model::node::{GenericResources, NamedResource};

/// One line of `node-generic-resources`: `KIND=NAME`, or `KIND=NUMBER` for so many that are alike.
pub(crate) fn add(resources: &mut GenericResources, line: &str) -> Result<(), String> {
    let form = "expected KIND=NAME or KIND=NUMBER, such as GPU=UUID1 or SSD=3";
    let (kind, value) = line.split_once('=').ok_or(form)?;
    if kind.is_empty() || value.is_empty() || !kind.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(form.to_owned());
    }
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if value.strip_prefix('-').is_some_and(is_number) || (is_number(value) && value.parse::<u64>().is_err()) {
        return Err(format!("{value} is no number of things: {form}"));
    }
    let mixed = || Err(format!("{kind} is counted in one place and named in another: {form}"));
    match value.parse() {
        Ok(_) if resources.named.iter().any(|resource| resource.kind == kind) => mixed(),
        Ok(_) if resources.counted.contains_key(kind) => Err(format!("{kind} is counted twice")),
        Ok(count) => {
            resources.counted.insert(kind.to_owned(), count);
            Ok(())
        }
        Err(_) if resources.counted.contains_key(kind) => mixed(),
        Err(_) => {
            resources.named.insert(NamedResource { kind: kind.to_owned(), name: value.to_owned() });
            Ok(())
        }
    }
}

/// `DOCKER_RESOURCE_GPU=UUID1,UUID2`, `DOCKER_RESOURCE_SSD=2`: a task's own, as Docker names them.
pub(crate) fn variables(own: &GenericResources) -> Vec<String> {
    let name = |kind: &str| format!("DOCKER_RESOURCE_{}", kind.to_uppercase());
    let mut lines: Vec<String> = own.counted.iter().map(|(kind, count)| format!("{}={count}", name(kind))).collect();
    let mut kinds: Vec<&str> = own.named.iter().map(|resource| resource.kind.as_str()).collect();
    kinds.dedup();
    for kind in kinds {
        let names = own.named.iter().filter(|resource| resource.kind == kind).map(|resource| resource.name.as_str());
        lines.push(format!("{}={}", name(kind), names.collect::<Vec<_>>().join(",")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(lines: &[&str]) -> Result<GenericResources, String> {
        let mut resources = GenericResources::default();
        lines.iter().try_for_each(|line| add(&mut resources, line))?;
        Ok(resources)
    }

    #[test]
    fn what_the_operator_writes_is_what_the_task_is_told() {
        let all = parsed(&["gpu=UUID2", "gpu=UUID1", "SSD=3", "licence=a"]).unwrap();
        assert_eq!((all.count("gpu"), all.count("SSD"), all.count("none")), (2, 3, 0));
        let told = ["DOCKER_RESOURCE_SSD=3", "DOCKER_RESOURCE_GPU=UUID1,UUID2", "DOCKER_RESOURCE_LICENCE=a"];
        assert_eq!(variables(&all), told);
    }

    #[test]
    fn wrong_lines_say_the_form() {
        for lines in [
            &["gpu"][..],
            &["gpu="],
            &["=1"],
            &["a b=1"],
            &["gpu=-3"],
            &["gpu=99999999999999999999"],
            &["gpu=2", "gpu=UUID"],
            &["gpu=U", "gpu=1"],
            &["a=1", "a=2"],
        ] {
            let refusal = parsed(lines).unwrap_err();
            assert!(refusal.contains("KIND=N") || refusal.contains("twice"), "{lines:?}: {refusal}");
        }
    }
}

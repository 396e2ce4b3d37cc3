//! Field numbers are for good: stored logs and nodes of another version hold them. This compares every message field,
//! enum value and method with `descriptors.golden`; `ORCH_BLESS=1` rewrites it after an addition.

// In a test a panic is the report.
#![allow(clippy::unwrap_used)]

use std::{env, fs, path::Path};

use protox::prost_reflect::prost_types::{DescriptorProto, ServiceDescriptorProto};

#[test]
fn numbers_and_types_are_those_of_the_golden_file() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = dir.join("descriptors.golden");
    let now = render(dir);
    if env::var_os("ORCH_BLESS").is_some() {
        fs::write(&golden, &now).unwrap();
    }
    let then = fs::read_to_string(&golden).unwrap();
    let gone: Vec<_> = then.lines().filter(|line| !now.lines().any(|other| other == *line)).collect();
    let new: Vec<_> = now.lines().filter(|line| !then.lines().any(|other| other == *line)).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "The wire contract changed.\ngone: {gone:#?}\nnew: {new:#?}\nAdditions: run this test with ORCH_BLESS=1 and commit \
         the file. What is gone must stay, or its number must be `reserved` in the .proto file."
    );
}

/// One sorted line per field, enum value, reserved range and method.
fn render(dir: &Path) -> String {
    let mut files: Vec<_> = fs::read_dir(dir.join("orch/v1")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    files.sort();
    let mut lines = Vec::new();
    for file in protox::compile(files, [dir]).unwrap().file {
        file.message_type.iter().for_each(|message| add_message(&mut lines, "", message));
        file.service.iter().for_each(|service| add_service(&mut lines, service));
        for choice in &file.enum_type {
            let name = choice.name();
            lines.extend(choice.value.iter().map(|value| format!("{name}.{} = {}", value.name(), value.number())));
        }
    }
    lines.sort();
    lines.join("\n") + "\n"
}

/// Maps come as nested messages that protobuf makes itself: number 1 is the key, 2 the value.
fn add_message(lines: &mut Vec<String>, owner: &str, message: &DescriptorProto) {
    let name = format!("{owner}{}", message.name());
    for field in &message.field {
        let label = field.label().as_str_name().trim_start_matches("LABEL_").to_lowercase();
        let kind = field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase();
        let refers = field.type_name().trim_start_matches(".orch.v1.");
        let line = format!("{name}.{} = {} {label} {kind} {refers}", field.name(), field.number());
        lines.push(line.trim_end().to_owned());
    }
    lines.extend(
        message.reserved_range.iter().map(|range| format!("{name} reserved {}..{}", range.start(), range.end())),
    );
    message.nested_type.iter().for_each(|nested| add_message(lines, &format!("{name}."), nested));
}

fn add_service(lines: &mut Vec<String>, service: &ServiceDescriptorProto) {
    let stream = |on| if on { "stream " } else { "" };
    for method in &service.method {
        let input = format!("{}{}", stream(method.client_streaming()), method.input_type());
        let output = format!("{}{}", stream(method.server_streaming()), method.output_type());
        lines.push(format!("{}/{} ({input}) -> {output}", service.name(), method.name()).replace(".orch.v1.", ""));
    }
}

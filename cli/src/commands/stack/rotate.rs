//! Secrets and configs of a stack: another content makes another version under another name, and services that use it
//! are updated to it under their own update policy. Nobody ever sees a file change under a running task.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Context as _;
use orch_model::{
    Annotations, Kind, Version,
    secret::{Config, Secret, TemplateDriver},
};
use orch_proto::{conv::ToProto, wire};

use tonic::Code;

use crate::{
    api::{Api, Stored, explain},
    commands::data,
    compose::StackData,
    flags::file_ref::NamedFile,
};

/// Full name in the file to the name of the version that has the file's content.
pub(super) type Current = BTreeMap<(Kind, String), String>;

/// On later versions: the name of the first one.
const VERSION_OF_LABEL: &str = "orch.stack.version-of";

/// Finds the version with this content or makes one; returns its name and whether it is new.
pub(super) async fn ensure(api: &mut Api, item: &StackData, content: &[u8]) -> anyhow::Result<(String, bool)> {
    let outcome = match item.kind {
        Kind::Secret => ensure_kind::<Secret>(api, item, content).await,
        _ => ensure_kind::<Config>(api, item, content).await,
    };
    outcome.with_context(|| format!("failed to create {} {}", item.kind, item.annotations.name))
}

/// The version with this content and `true`, or the name that a new one would get; changes nothing.
pub(super) async fn preview(api: &mut Api, item: &StackData, content: &[u8]) -> anyhow::Result<(String, bool)> {
    match item.kind {
        Kind::Secret => preview_kind::<Secret>(api, item, content).await,
        _ => preview_kind::<Config>(api, item, content).await,
    }
}

async fn preview_kind<T: Data>(api: &mut Api, item: &StackData, content: &[u8]) -> anyhow::Result<(String, bool)> {
    let versions = versions::<T>(api, &item.annotations.name).await?;
    for (_, stored) in &versions {
        if stored.template() == item.template && T::has(api, stored, content).await? {
            return Ok((stored.annotations().name.clone(), true));
        }
    }
    let next = versions.first().map_or(1, |(number, _)| number + 1);
    Ok((annotations(item, next).name, false))
}

/// Files with the names of the versions that are current.
pub(super) fn renamed(current: &Current, kind: Kind, files: &[NamedFile]) -> Vec<NamedFile> {
    let rename = |file: &NamedFile| match current.get(&(kind, file.source.clone())) {
        Some(name) => NamedFile { source: name.clone(), ..file.clone() },
        None => file.clone(),
    };
    files.iter().map(rename).collect()
}

/// Newest first.
async fn versions<T: Data>(api: &mut Api, base: &str) -> anyhow::Result<Vec<(u64, Arc<T>)>> {
    let mut versions: Vec<(u64, Arc<T>)> = Vec::new();
    for stored in api.all::<T>().await?.into_iter().filter(|stored| !stored.is_going()) {
        versions.extend(number(base, stored.annotations()).map(|number| (number, stored)));
    }
    versions.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    Ok(versions)
}

async fn ensure_kind<T: Data>(api: &mut Api, item: &StackData, content: &[u8]) -> anyhow::Result<(String, bool)> {
    let versions = versions::<T>(api, &item.annotations.name).await?;
    for (number, stored) in &versions {
        if stored.template() == item.template && T::is_same(api, stored, &annotations(item, *number), content).await? {
            return Ok((stored.annotations().name.clone(), false));
        }
    }
    let next = versions.first().map_or(1, |(number, _)| number + 1);
    let annotations = annotations(item, next);
    println!("Creating {} {}", item.kind, annotations.name);
    data::store(api, item.kind, &annotations, content.to_vec(), item.template).await?;
    Ok((annotations.name, true))
}

fn annotations(item: &StackData, number: u64) -> Annotations {
    let mut annotations = item.annotations.clone();
    if number > 1 {
        annotations.labels.insert(VERSION_OF_LABEL.into(), annotations.name.clone());
        annotations.name = format!("{}.{number}", annotations.name);
    }
    annotations
}

/// Which version of `base` an object is, if it is one.
fn number(base: &str, stored: &Annotations) -> Option<u64> {
    if stored.name == base {
        return Some(1);
    }
    if stored.labels.get(VERSION_OF_LABEL).is_none_or(|of| of != base) {
        return None;
    }
    stored.name.strip_prefix(base)?.strip_prefix('.')?.parse().ok()
}

/// What secrets and configs have in common.
trait Data: Stored {
    fn annotations(&self) -> &Annotations;
    fn template(&self) -> Option<TemplateDriver>;
    /// Whether it goes when the last task that has it stops: nobody may use it any more.
    fn is_going(&self) -> bool;
    /// Whether the stored object has this content; its labels become those given.
    async fn is_same(api: &mut Api, stored: &Arc<Self>, wanted: &Annotations, content: &[u8]) -> anyhow::Result<bool>;
    /// The same, and nothing changes.
    async fn has(api: &mut Api, stored: &Arc<Self>, content: &[u8]) -> anyhow::Result<bool>;
}

impl Data for Secret {
    fn annotations(&self) -> &Annotations {
        &self.annotations
    }

    fn template(&self) -> Option<TemplateDriver> {
        self.template
    }

    fn is_going(&self) -> bool {
        self.removing
    }

    /// A secret's content never leaves the managers, so they are asked: an update takes no other content.
    async fn is_same(api: &mut Api, stored: &Arc<Self>, wanted: &Annotations, content: &[u8]) -> anyhow::Result<bool> {
        let spec =
            wire::SecretSpec { annotations: Some(wanted.to_proto()), data: content.to_vec().into(), template: None };
        update::<Self>(api, stored.id.as_str(), stored.meta.version, wire::spec::Spec::Secret(spec)).await
    }

    /// An update of a version that is none is refused, but another content is refused before that.
    async fn has(api: &mut Api, stored: &Arc<Self>, content: &[u8]) -> anyhow::Result<bool> {
        let annotations = Some(stored.annotations.to_proto());
        let spec = wire::SecretSpec { annotations, data: content.to_vec().into(), template: None };
        let id = stored.id.as_str();
        match api.try_update(Kind::Secret, id, Version::default(), Some(wire::spec::Spec::Secret(spec))).await {
            Err(status) if status.code() == Code::InvalidArgument => Ok(false),
            Err(status) if [Code::Aborted, Code::FailedPrecondition].contains(&status.code()) => Ok(true),
            Ok(_) => Ok(true),
            Err(status) => Err(explain(status)),
        }
    }
}

impl Data for Config {
    fn annotations(&self) -> &Annotations {
        &self.annotations
    }

    fn template(&self) -> Option<TemplateDriver> {
        self.template
    }

    fn is_going(&self) -> bool {
        self.removing
    }

    async fn is_same(api: &mut Api, stored: &Arc<Self>, wanted: &Annotations, content: &[u8]) -> anyhow::Result<bool> {
        if stored.data != content {
            return Ok(false);
        }
        if stored.annotations == *wanted {
            return Ok(true);
        }
        let spec =
            wire::ConfigSpec { annotations: Some(wanted.to_proto()), data: content.to_vec().into(), template: None };
        update::<Self>(api, stored.id.as_str(), stored.meta.version, wire::spec::Spec::Config(spec)).await
    }

    async fn has(_: &mut Api, stored: &Arc<Self>, content: &[u8]) -> anyhow::Result<bool> {
        Ok(stored.data == content)
    }
}

/// Whether the manager took the update: it refuses any other content.
async fn update<T: Stored>(api: &mut Api, id: &str, version: Version, spec: wire::spec::Spec) -> anyhow::Result<bool> {
    match api.try_update(T::KIND, id, version, Some(spec)).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::InvalidArgument => Ok(false),
        Err(status) => Err(explain(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_from_namesakes() {
        let labelled = |name: &str, of: &str| Annotations {
            name: name.into(),
            labels: [(VERSION_OF_LABEL.to_owned(), of.to_owned())].into(),
        };
        assert_eq!(number("shop_pw", &Annotations { name: "shop_pw".into(), ..Annotations::default() }), Some(1));
        assert_eq!(number("shop_pw", &labelled("shop_pw.3", "shop_pw")), Some(3));
        assert_eq!(number("shop_pw", &labelled("shop_pw.3", "other")), None);
        assert_eq!(number("shop_pw", &Annotations { name: "shop_pw.3".into(), ..Annotations::default() }), None);
    }
}

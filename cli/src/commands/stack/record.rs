//! The stack's last deployments, kept in the cluster as files, so that the whole stack can be returned to one.
//!
//! Each is a config of the stack, named `STACK.deploy.N`; it is written once the whole deployment has been taken, and
//! goes when the stack goes. A refused deployment leaves none.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use orch_model::{
    Annotations, Kind,
    secret::{Config, MAX_CONFIG_BYTES},
};

use super::{current, in_stack};
use crate::{
    api::Api,
    commands::data,
    compose::{NAMESPACE_LABEL, export},
};

const NUMBER_LABEL: &str = "orch.stack.deployment";

/// The one that runs, and the one before it.
const KEPT: usize = 2;

/// Notes what has just been deployed, unless it is what was deployed before.
pub(super) async fn save(api: &mut Api, stack: &str) -> anyhow::Result<()> {
    let objects = current::stack(api, stack).await?;
    let text = serde_json::to_string_pretty(&export::escaped(&export::document(stack, &objects)))?;
    if text.len() > MAX_CONFIG_BYTES {
        remark!(
            "the description of stack {stack} has {} bytes, more than a config may have ({MAX_CONFIG_BYTES}): `orch \
             stack rollback` will not return to this deployment",
            text.len()
        );
        return Ok(());
    }
    let records = records(api, stack).await?;
    if records.first().is_some_and(|(_, newest)| newest.data == text.as_bytes()) {
        return Ok(());
    }
    let number = records.first().map_or(1, |(number, _)| number + 1);
    let annotations = Annotations {
        name: format!("{stack}.deploy.{number}"),
        labels: [(NAMESPACE_LABEL.to_owned(), stack.to_owned()), (NUMBER_LABEL.to_owned(), number.to_string())].into(),
    };
    data::store(api, Kind::Config, &annotations, text.into_bytes(), None).await?;
    for (_, old) in records.iter().skip(KEPT - 1) {
        api.remove(Kind::Config, old.id.as_str(), false).await?;
    }
    Ok(())
}

/// The file that describes the deployment before the last one.
pub(super) async fn previous(api: &mut Api, stack: &str) -> anyhow::Result<(String, String)> {
    let records = records(api, stack).await?;
    let Some((_, before)) = records.get(1) else {
        bail!("stack {stack} has no earlier deployment to return to: it has been deployed once, or by hand");
    };
    let text = String::from_utf8(before.data.clone()).context("the earlier deployment's description is not a text")?;
    Ok((before.annotations.name.clone(), text))
}

/// Newest first.
async fn records(api: &mut Api, stack: &str) -> anyhow::Result<Vec<(u64, Arc<Config>)>> {
    let configs = api.list::<Config>(in_stack(stack)).await?;
    let number = |config: &Config| config.annotations.labels.get(NUMBER_LABEL)?.parse::<u64>().ok();
    let mut records: Vec<_> =
        configs.into_iter().filter(|c| !c.removing).filter_map(|config| Some((number(&config)?, config))).collect();
    records.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    Ok(records)
}

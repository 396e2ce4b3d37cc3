//! Walks the tree with a value.
//!
//! Templates come from whoever may make a service, and managers fill them in to see whether they fit: what one may do is
//! limited.

use std::cell::Cell;

use serde_json::Value;

use super::{
    OwnFunctions, TemplateError, functions, native,
    parser::{Node, Operand, Pipeline},
};

/// What one rendering may do: bytes of text, where a value and a step count as [`STEP_WORK`] of them. Enough for any file,
/// and done in less than a second.
const MAX_WORK: usize = 64 << 20;
const STEP_WORK: usize = 64;

/// What may still be done, by one rendering or by several that share it.
pub(super) struct Allowance {
    left: Cell<usize>,
    whose: &'static str,
}

impl Allowance {
    /// `whose` is the subject of the sentence that says that it was not enough.
    pub(super) fn new(work: usize, whose: &'static str) -> Self {
        Self { left: Cell::new(work), whose }
    }

    fn spend(&self, work: usize) -> Result<(), TemplateError> {
        let left = self.left.get().checked_sub(work);
        let whose = self.whose;
        let spent = || TemplateError(format!("{whose} takes too many steps, or gives too much text"));
        self.left.set(left.ok_or_else(spent)?);
        Ok(())
    }
}

impl Default for Allowance {
    fn default() -> Self {
        Self::new(MAX_WORK, "it")
    }
}

pub(super) fn render(
    nodes: &[Node],
    data: &Value,
    own: OwnFunctions<'_>,
    allowance: &Allowance,
) -> Result<String, TemplateError> {
    let variables = vec![("$".into(), data.clone())];
    let mut run = Run { out: String::new(), variables, own, allowance };
    run.block(nodes, &Scope { dot: data, root: true })?;
    Ok(run.out)
}

struct Run<'a> {
    out: String,
    variables: Vec<(String, Value)>,
    own: OwnFunctions<'a>,
    allowance: &'a Allowance,
}

struct Scope<'a> {
    dot: &'a Value,
    /// The dot is the whole value: what it lacks is a mistake in the template, not an absent option.
    root: bool,
}

enum Flow {
    Go,
    Break,
    Continue,
}

impl Run<'_> {
    fn spend(&self, work: usize) -> Result<(), TemplateError> {
        self.allowance.spend(work)
    }

    /// A copy, paid for.
    fn copy(&self, value: &Value) -> Result<Value, TemplateError> {
        self.spend(work_of(value))?;
        Ok(value.clone())
    }

    fn block(&mut self, nodes: &[Node], scope: &Scope<'_>) -> Result<Flow, TemplateError> {
        let depth = self.variables.len();
        for node in nodes {
            let flow = self.node(node, scope)?;
            if !matches!(flow, Flow::Go) {
                self.variables.truncate(depth);
                return Ok(flow);
            }
        }
        self.variables.truncate(depth);
        Ok(Flow::Go)
    }

    fn node(&mut self, node: &Node, scope: &Scope<'_>) -> Result<Flow, TemplateError> {
        self.spend(STEP_WORK)?;
        match node {
            Node::Text(text) => {
                self.spend(text.len())?;
                self.out.push_str(text);
            }
            Node::Action(pipeline) => {
                let value = self.pipeline(pipeline, scope)?;
                if pipeline.variables.is_empty() {
                    self.out.push_str(&functions::display(&value));
                }
            }
            Node::If(arms) => return self.conditional(arms, scope),
            Node::With(pipeline, body, otherwise) => {
                let depth = self.variables.len();
                let value = self.pipeline(pipeline, scope)?;
                let flow = if functions::truth(&value) {
                    self.block(body, &Scope { dot: &value, root: false })
                } else {
                    self.block(otherwise, scope)
                };
                self.variables.truncate(depth);
                return flow;
            }
            Node::Range(pipeline, body, otherwise) => self.range(pipeline, body, otherwise, scope)?,
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Go)
    }

    fn conditional(
        &mut self,
        arms: &[(Option<Pipeline>, Vec<Node>)],
        scope: &Scope<'_>,
    ) -> Result<Flow, TemplateError> {
        let depth = self.variables.len();
        for (condition, body) in arms {
            let holds = match condition {
                Some(condition) => functions::truth(&self.pipeline(condition, scope)?),
                None => true,
            };
            if holds {
                let flow = self.block(body, scope);
                self.variables.truncate(depth);
                return flow;
            }
        }
        self.variables.truncate(depth);
        Ok(Flow::Go)
    }

    fn range(
        &mut self,
        pipeline: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        scope: &Scope<'_>,
    ) -> Result<(), TemplateError> {
        let value = self.commands(pipeline, scope)?;
        let items: Vec<(Value, Value)> = match value {
            Value::Array(list) => list.into_iter().enumerate().map(|(i, v)| (Value::from(i), v)).collect(),
            Value::Object(map) => {
                let entries = native::entries(&map);
                let mut items: Vec<_> = entries.map(|(k, v)| (Value::String(k.clone()), v.clone())).collect();
                items.sort_by(|a, b| a.0.as_str().cmp(&b.0.as_str()));
                items
            }
            Value::Null => Vec::new(),
            other => {
                return Err(TemplateError(format!("range can't iterate over {}", functions::display(&other))));
            }
        };
        if items.is_empty() {
            self.block(otherwise, scope)?;
            return Ok(());
        }
        for (key, value) in items {
            let depth = self.variables.len();
            match pipeline.variables.as_slice() {
                [] => {}
                [one] => self.variables.push((one.clone(), value.clone())),
                [first, second, ..] => {
                    self.variables.push((first.clone(), key));
                    self.variables.push((second.clone(), value.clone()));
                }
            }
            let flow = self.block(body, &Scope { dot: &value, root: false })?;
            self.variables.truncate(depth);
            if matches!(flow, Flow::Break) {
                break;
            }
        }
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, scope: &Scope<'_>) -> Result<Value, TemplateError> {
        let value = self.commands(pipeline, scope)?;
        if let Some(name) = pipeline.variables.first() {
            if pipeline.declares {
                self.variables.push((name.clone(), value.clone()));
            } else {
                let slot = self.variables.iter_mut().rev().find(|(known, _)| known == name);
                slot.ok_or_else(|| undefined(name))?.1 = value.clone();
            }
        }
        Ok(value)
    }

    fn commands(&mut self, pipeline: &Pipeline, scope: &Scope<'_>) -> Result<Value, TemplateError> {
        let mut piped = None;
        for command in &pipeline.commands {
            piped = Some(self.command(command, piped, scope)?);
        }
        Ok(piped.unwrap_or(Value::Null))
    }

    fn command(
        &mut self,
        operands: &[Operand],
        piped: Option<Value>,
        scope: &Scope<'_>,
    ) -> Result<Value, TemplateError> {
        let Some((first, rest)) = operands.split_first() else {
            return Err(TemplateError("missing value for command".into()));
        };
        let Operand::Function(name) = first else {
            if let ([key], None) = (rest, &piped)
                && let Value::Object(map) = self.operand(first, scope)?
            {
                // What Go has as a method of the value, such as `.Label "a"`.
                let key = functions::display(&self.operand(key, scope)?);
                return Ok(native::field(&map, &key).cloned().unwrap_or_else(|| "".into()));
            }
            if !rest.is_empty() || piped.is_some() {
                return Err(TemplateError("can't give argument to a value that is not a function".into()));
            }
            return self.operand(first, scope);
        };
        let mut arguments = Vec::with_capacity(rest.len() + 1);
        for operand in rest {
            let value = self.operand(operand, scope)?;
            // `and` and `or` stop at the argument that decides, so that what follows may not even exist.
            let decided = match name.as_str() {
                "and" => !functions::truth(&value),
                "or" => functions::truth(&value),
                _ => false,
            };
            if decided {
                return Ok(value);
            }
            arguments.push(value);
        }
        arguments.extend(piped);
        self.call(name, arguments)
    }

    fn call(&self, name: &str, arguments: Vec<Value>) -> Result<Value, TemplateError> {
        let value = (self.own)(name, &arguments).unwrap_or_else(|| functions::call(name, arguments))?;
        self.spend(work_of(&value))?;
        Ok(value)
    }

    fn operand(&mut self, operand: &Operand, scope: &Scope<'_>) -> Result<Value, TemplateError> {
        match operand {
            Operand::Dot => self.copy(scope.dot),
            Operand::Field(path) => self.fields(scope.dot, path, scope.root),
            Operand::Literal(value) => self.copy(value),
            Operand::Function(name) => self.call(name, Vec::new()),
            Operand::Group(inner, path) => {
                let value = self.pipeline(inner, scope)?;
                self.fields(&value, path, false)
            }
            Operand::Variable(name, path) => {
                self.spend(self.variables.len())?;
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                let (_, value) = found.ok_or_else(|| undefined(name))?;
                self.fields(value, path, name == "$")
            }
        }
    }

    fn fields(&self, value: &Value, path: &[String], strict: bool) -> Result<Value, TemplateError> {
        self.spend(path.len())?;
        self.copy(fields(value, path, strict)?)
    }
}

fn work_of(value: &Value) -> usize {
    let parts = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(work_of).sum(),
        Value::Object(map) => map.iter().map(|(name, value)| name.len() + work_of(value)).sum(),
    };
    STEP_WORK + parts
}

fn undefined(name: &str) -> TemplateError {
    TemplateError(format!("undefined variable {name:?}"))
}

fn fields<'a>(value: &'a Value, path: &[String], strict: bool) -> Result<&'a Value, TemplateError> {
    let mut value = value;
    for (depth, name) in path.iter().enumerate() {
        value = match value {
            // Of nothing at all: as Go, said where the template says it of the whole value.
            Value::Object(_) if strict && depth == 1 && native::text(value) == Some("<nil>") => {
                return Err(TemplateError(format!("nil pointer evaluating .{}", path.join("."))));
            }
            Value::Object(map) => match native::field(map, name) {
                Some(inner) => inner,
                None if strict && depth == 0 => {
                    return Err(TemplateError(format!(
                        "at <.{name}>: map has no entry for key {name:?}; it has {}",
                        native::entries(map).map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
                    )));
                }
                None => &Value::Null,
            },
            Value::Null => &Value::Null,
            other => {
                return Err(TemplateError(format!(
                    "at <.{}>: can't evaluate field {name} in {}",
                    path.join("."),
                    functions::display(other)
                )));
            }
        };
    }
    Ok(value)
}

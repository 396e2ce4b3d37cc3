//! Tokens to a tree.

use serde_json::Value;

use super::{
    TemplateError,
    lexer::{Token, Word},
};

/// Of blocks in each other, and of parentheses: each level takes some of the stack, here and when it is evaluated.
const MAX_DEPTH: usize = 64;

#[derive(Debug, Clone)]
pub(super) enum Node {
    Text(String),
    Action(Pipeline),
    /// Arms in order; the last without a condition is `else`.
    If(Vec<(Option<Pipeline>, Vec<Node>)>),
    With(Pipeline, Vec<Node>, Vec<Node>),
    Range(Pipeline, Vec<Node>, Vec<Node>),
    Break,
    Continue,
}

#[derive(Debug, Clone)]
pub(super) struct Pipeline {
    /// `$a, $b :=`; `declares` is false for `=`.
    pub(super) variables: Vec<String>,
    pub(super) declares: bool,
    pub(super) commands: Vec<Vec<Operand>>,
}

#[derive(Debug, Clone)]
pub(super) enum Operand {
    Dot,
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Literal(Value),
    Function(String),
    Group(Box<Pipeline>, Vec<String>),
}

pub(super) fn parse(tokens: Vec<Token>) -> Result<Vec<Node>, TemplateError> {
    let mut parser = Parser { tokens: tokens.into_iter(), depth: 0 };
    match parser.block()? {
        (nodes, None) => Ok(nodes),
        (_, Some(End { keyword, .. })) => Err(TemplateError(format!("unexpected {{{{{keyword}}}}}"))),
    }
}

/// Collects what a tree reads from the dot.
pub(super) fn paths<'a>(nodes: &'a [Node], found: &mut Vec<&'a [String]>) {
    for node in nodes {
        match node {
            Node::Text(_) | Node::Break | Node::Continue => {}
            Node::Action(pipeline) => paths_of(pipeline, found),
            Node::If(arms) => {
                for (condition, body) in arms {
                    condition.iter().for_each(|pipeline| paths_of(pipeline, found));
                    paths(body, found);
                }
            }
            Node::With(pipeline, body, otherwise) | Node::Range(pipeline, body, otherwise) => {
                paths_of(pipeline, found);
                paths(body, found);
                paths(otherwise, found);
            }
        }
    }
}

fn paths_of<'a>(pipeline: &'a Pipeline, found: &mut Vec<&'a [String]>) {
    for operand in pipeline.commands.iter().flatten() {
        match operand {
            Operand::Field(path) => found.push(path),
            Operand::Variable(name, path) if name == "$" => found.push(path),
            Operand::Group(inner, _) => paths_of(inner, found),
            Operand::Dot | Operand::Variable(..) | Operand::Literal(_) | Operand::Function(_) => {}
        }
    }
}

struct Parser {
    tokens: std::vec::IntoIter<Token>,
    depth: usize,
}

/// What closed a block: `end`, or `else` with what follows it.
struct End {
    keyword: String,
    rest: Vec<Word>,
}

impl Parser {
    fn block(&mut self) -> Result<(Vec<Node>, Option<End>), TemplateError> {
        let mut nodes = Vec::new();
        while let Some(token) = self.tokens.next() {
            let words = match token {
                Token::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Token::Action(words) => words,
            };
            let (keyword, rest) = split_keyword(words);
            match keyword.as_deref() {
                Some("end" | "else") => {
                    return Ok((nodes, Some(End { keyword: keyword.unwrap_or_default(), rest })));
                }
                Some("if") => nodes.push(self.conditional(rest)?),
                Some("with") => nodes.push(self.scoped(rest, Node::With)?),
                Some("range") => nodes.push(self.scoped(rest, Node::Range)?),
                Some("break") => nodes.push(Node::Break),
                Some("continue") => nodes.push(Node::Continue),
                _ => nodes.push(Node::Action(pipeline(&rest)?)),
            }
        }
        Ok((nodes, None))
    }

    fn conditional(&mut self, condition: Vec<Word>) -> Result<Node, TemplateError> {
        let mut arms = Vec::new();
        let mut condition = Some(pipeline(&condition)?);
        loop {
            let (body, end) = self.closed_block()?;
            let was_else = condition.is_none();
            arms.push((condition, body));
            match (end.keyword.as_str(), split_keyword(end.rest)) {
                ("end", _) => return Ok(Node::If(arms)),
                (_, (Some(word), rest)) if word == "if" && !was_else => condition = Some(pipeline(&rest)?),
                (_, (None, _)) if !was_else => condition = None,
                _ => return Err(TemplateError("unexpected {{else}}".into())),
            }
        }
    }

    fn scoped(
        &mut self,
        value: Vec<Word>,
        make: impl Fn(Pipeline, Vec<Node>, Vec<Node>) -> Node,
    ) -> Result<Node, TemplateError> {
        let value = pipeline(&value)?;
        let (body, end) = self.closed_block()?;
        if end.keyword == "end" {
            return Ok(make(value, body, Vec::new()));
        }
        let (otherwise, end) = self.closed_block()?;
        if end.keyword != "end" {
            return Err(TemplateError("unexpected {{else}}".into()));
        }
        Ok(make(value, body, otherwise))
    }

    fn closed_block(&mut self) -> Result<(Vec<Node>, End), TemplateError> {
        self.depth += 1;
        check_depth(self.depth)?;
        let block = self.block()?;
        self.depth -= 1;
        match block {
            (nodes, Some(end)) => Ok((nodes, end)),
            (_, None) => Err(TemplateError("unexpected EOF: an {{if}}, {{range}} or {{with}} has no {{end}}".into())),
        }
    }
}

fn check_depth(depth: usize) -> Result<(), TemplateError> {
    if depth <= MAX_DEPTH {
        return Ok(());
    }
    Err(TemplateError(format!("blocks or parentheses that are more than {MAX_DEPTH} deep in each other")))
}

const KEYWORDS: [&str; 7] = ["if", "else", "end", "range", "with", "break", "continue"];

fn split_keyword(words: Vec<Word>) -> (Option<String>, Vec<Word>) {
    let mut words = words.into_iter().skip_while(|w| *w == Word::Space).peekable();
    let is_keyword = matches!(words.peek(), Some(Word::Name(name)) if KEYWORDS.contains(&name.as_str()));
    let keyword = if is_keyword { words.next() } else { None };
    let keyword = keyword.map(|word| match word {
        Word::Name(name) => name,
        _ => String::new(),
    });
    (keyword, words.collect())
}

fn pipeline(words: &[Word]) -> Result<Pipeline, TemplateError> {
    let mut at = 0;
    let pipeline = pipeline_at(words, &mut at, 0)?;
    if at < words.len() {
        return Err(TemplateError("unexpected \")\" in an action".into()));
    }
    Ok(pipeline)
}

fn pipeline_at(words: &[Word], at: &mut usize, depth: usize) -> Result<Pipeline, TemplateError> {
    check_depth(depth)?;
    let (variables, declares) = declaration(words, at);
    let mut commands = Vec::new();
    let mut command = Vec::new();
    while let Some(word) = words.get(*at) {
        *at += 1;
        match word {
            Word::Space => {}
            Word::Close => {
                *at -= 1;
                break;
            }
            Word::Pipe => {
                if command.is_empty() {
                    return Err(TemplateError("missing value for command".into()));
                }
                commands.push(std::mem::take(&mut command));
            }
            Word::Open => {
                let inner = pipeline_at(words, at, depth + 1)?;
                if words.get(*at) != Some(&Word::Close) {
                    return Err(TemplateError("unclosed left paren".into()));
                }
                *at += 1;
                command.push(Operand::Group(Box::new(inner), trailing_fields(words, at)));
            }
            Word::Dot => command.push(Operand::Dot),
            Word::Field(path) => command.push(Operand::Field(path.clone())),
            Word::Variable(name) => command.push(Operand::Variable(name.clone(), trailing_fields(words, at))),
            Word::Name(name) => command.push(match name.as_str() {
                "true" => Operand::Literal(Value::Bool(true)),
                "false" => Operand::Literal(Value::Bool(false)),
                "nil" => Operand::Literal(Value::Null),
                _ => Operand::Function(name.clone()),
            }),
            Word::Text(text) => command.push(Operand::Literal(Value::String(text.clone()))),
            Word::Number(number) => command.push(Operand::Literal(Value::Number(number.clone()))),
            Word::Comma | Word::Declare | Word::Assign => {
                return Err(TemplateError("unexpected \",\" or \"=\" in an action".into()));
            }
        }
    }
    if command.is_empty() {
        return Err(TemplateError("missing value for command".into()));
    }
    commands.push(command);
    Ok(Pipeline { variables, declares, commands })
}

/// Fields that follow without a space: `$x.Name`, `(index . 0).Name`.
fn trailing_fields(words: &[Word], at: &mut usize) -> Vec<String> {
    match words.get(*at) {
        Some(Word::Field(path)) => {
            *at += 1;
            path.clone()
        }
        _ => Vec::new(),
    }
}

fn declaration(words: &[Word], at: &mut usize) -> (Vec<String>, bool) {
    let mut variables = Vec::new();
    let mut look = *at;
    while let Some(word) = words.get(look) {
        look += 1;
        match word {
            Word::Space | Word::Comma => {}
            Word::Variable(name) => variables.push(name.clone()),
            Word::Declare | Word::Assign if !variables.is_empty() => {
                *at = look;
                return (variables, *word == Word::Declare);
            }
            _ => break,
        }
    }
    (Vec::new(), false)
}

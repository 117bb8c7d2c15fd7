//! From text to a tree, with the place of whatever does not fit.

use std::collections::BTreeSet;

use super::{DEPTH_MAX, EXPRESSION_BYTES_MAX, Expression, ExpressionError, Matcher, Node, Operator};
use crate::metrics::catalogue::{CATALOGUE, Definition, is_known};
use crate::text::nearest;
use crate::units::Span;

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Number(f64),
    /// A number with letters right behind it: only a length of time is written so.
    Duration(Span),
    Text(String),
    Sign(&'static str),
    End,
}

const SIGNS: [&str; 16] =
    ["==", "!=", ">=", "<=", ">", "<", "=", "+", "-", "*", "/", "(", ")", "{", "}", ","];

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

fn error<T>(at: usize, message: impl Into<String>) -> Result<T, ExpressionError> {
    Err(ExpressionError { at, message: message.into() })
}

pub(super) fn parse(text: &str) -> Result<Expression, ExpressionError> {
    if text.len() > EXPRESSION_BYTES_MAX {
        return error(0, format!("the expression has more than {EXPRESSION_BYTES_MAX} bytes"));
    }
    let mut parser = Parser { tokens: tokens(text)?, next: 0, depth: 0 };
    let root = parser.alternatives()?;
    let hold = if parser.take_word("for") { Some(parser.span()?) } else { None };
    let (at, token) = parser.peek().clone();
    if token != Token::End {
        return error(at, format!("{} is not expected here", shown(&token)));
    }
    if !root.is_condition() {
        return error(at, "a comparison is needed, such as `> 0`");
    }
    Ok(Expression { root, hold })
}

fn shown(token: &Token) -> String {
    match token {
        Token::Word(word) => format!("`{word}`"),
        Token::Number(number) => format!("`{number}`"),
        Token::Duration(span) => format!("`{span}`"),
        Token::Text(_) => "a text".to_owned(),
        Token::Sign(sign) => format!("`{sign}`"),
        Token::End => "the end".to_owned(),
    }
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, ExpressionError> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    let until = |from: usize, fits: &dyn Fn(char) -> bool| {
        chars[from..].iter().position(|c| !fits(*c)).map_or(chars.len(), |length| from + length)
    };
    while at < chars.len() {
        let c = chars[at];
        let begin = at;
        if c.is_whitespace() {
            at += 1;
            continue;
        }
        let token = if c.is_ascii_alphabetic() || c == '_' {
            at = until(at, &|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
            Token::Word(chars[begin..at].iter().collect())
        } else if c.is_ascii_digit() || c == '.' {
            at = until(at, &|c| c.is_ascii_alphanumeric() || c == '.');
            // `1e-3`: the sign belongs to the number.
            if chars[at - 1] == 'e' && matches!(chars.get(at), Some('+' | '-')) {
                at = until(at + 1, &|c| c.is_ascii_digit());
            }
            number(begin, &chars[begin..at].iter().collect::<String>())?
        } else if c == '"' || c == '\'' {
            let Some(length) = chars[at + 1..].iter().position(|end| *end == c) else {
                return error(begin, "this text has no end");
            };
            at += length + 2;
            Token::Text(chars[begin + 1..at - 1].iter().collect())
        } else {
            let rest: String = chars[at..].iter().take(2).collect();
            let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(*sign)) else {
                return error(begin, format!("{c:?} has no meaning here"));
            };
            at += sign.len();
            Token::Sign(sign)
        };
        tokens.push((begin, token));
    }
    tokens.push((chars.len(), Token::End));
    Ok(tokens)
}

fn number(at: usize, text: &str) -> Result<Token, ExpressionError> {
    match (text.parse::<f64>(), text.parse::<Span>()) {
        (Ok(number), _) if number.is_finite() => Ok(Token::Number(number)),
        (Ok(_), _) => error(at, format!("{text} is too large")),
        (Err(_), Ok(span)) => Ok(Token::Duration(span)),
        (Err(_), Err(_)) => error(at, format!("{text:?} is not a number")),
    }
}

impl Parser {
    fn peek(&self) -> &(usize, Token) {
        &self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn take(&mut self) -> (usize, Token) {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn take_sign(&mut self, sign: &str) -> bool {
        let found = matches!(&self.peek().1, Token::Sign(found) if *found == sign);
        self.next += usize::from(found);
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = matches!(&self.peek().1, Token::Word(found) if found == word);
        self.next += usize::from(found);
        found
    }

    fn span(&mut self) -> Result<Span, ExpressionError> {
        match self.take() {
            (_, Token::Duration(span)) => Ok(span),
            (at, token) => {
                error(at, format!("a length of time is needed, such as 5m, not {}", shown(&token)))
            }
        }
    }

    fn alternatives(&mut self) -> Result<Node, ExpressionError> {
        let mut left = self.conjunction()?;
        loop {
            let at = self.peek().0;
            if !self.take_word("or") {
                return Ok(left);
            }
            let right = self.conjunction()?;
            left = binary(at, Operator::Or, left, right)?;
        }
    }

    fn conjunction(&mut self) -> Result<Node, ExpressionError> {
        let mut left = self.comparison()?;
        loop {
            let at = self.peek().0;
            let operator = match () {
                () if self.take_word("and") => Operator::And,
                () if self.take_word("unless") => Operator::Unless,
                () => return Ok(left),
            };
            let right = self.comparison()?;
            left = binary(at, operator, left, right)?;
        }
    }

    fn comparison(&mut self) -> Result<Node, ExpressionError> {
        let left = self.sum()?;
        let (at, token) = self.peek().clone();
        let operator = match token {
            Token::Sign("==") => Operator::Equal,
            Token::Sign("!=") => Operator::Unequal,
            Token::Sign(">") => Operator::Greater,
            Token::Sign(">=") => Operator::GreaterOrEqual,
            Token::Sign("<") => Operator::Less,
            Token::Sign("<=") => Operator::LessOrEqual,
            Token::Sign("=") => return error(at, "`=` compares labels; values are compared with `==`"),
            _ => return Ok(left),
        };
        self.next += 1;
        let right = self.sum()?;
        binary(at, operator, left, right)
    }

    fn sum(&mut self) -> Result<Node, ExpressionError> {
        let mut left = self.product()?;
        loop {
            let at = self.peek().0;
            let operator = match () {
                () if self.take_sign("+") => Operator::Add,
                () if self.take_sign("-") => Operator::Subtract,
                () => return Ok(left),
            };
            let right = self.product()?;
            left = binary(at, operator, left, right)?;
        }
    }

    fn product(&mut self) -> Result<Node, ExpressionError> {
        let mut left = self.unary()?;
        loop {
            let at = self.peek().0;
            let operator = match () {
                () if self.take_sign("*") => Operator::Multiply,
                () if self.take_sign("/") => Operator::Divide,
                () => return Ok(left),
            };
            let right = self.unary()?;
            left = binary(at, operator, left, right)?;
        }
    }

    fn unary(&mut self) -> Result<Node, ExpressionError> {
        let at = self.peek().0;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return error(at, format!("it is nested more than {DEPTH_MAX} deep"));
        }
        let node = if self.take_sign("-") {
            let inner = self.unary()?;
            if inner.is_condition() {
                return error(at, "what was compared can not be compared or calculated with");
            }
            Node::Negative(Box::new(inner))
        } else {
            self.primary()?
        };
        self.depth -= 1;
        Ok(node)
    }

    fn primary(&mut self) -> Result<Node, ExpressionError> {
        match self.take() {
            (_, Token::Number(number)) => Ok(Node::Number(number)),
            (_, Token::Duration(span)) => Ok(Node::Number(span.secs() as f64)),
            (_, Token::Sign("(")) => {
                let inner = self.alternatives()?;
                let at = self.peek().0;
                if self.take_sign(")") { Ok(inner) } else { error(at, "`)` is missing") }
            }
            (_, Token::Word(word)) if word == "time" && self.take_sign("(") => {
                let at = self.peek().0;
                if self.take_sign(")") { Ok(Node::Time) } else { error(at, "`time()` takes nothing") }
            }
            (at, Token::Word(name)) => self.metric(at, name),
            (at, token) => error(at, format!("a metric or a number is needed, not {}", shown(&token))),
        }
    }

    fn metric(&mut self, at: usize, name: String) -> Result<Node, ExpressionError> {
        if self.peek().1 == Token::Sign("(") {
            return error(at, format!("there is no function {name}; time() is one"));
        }
        if !is_known(&name) {
            return error(at, unknown_metric(&name));
        }
        let labels = labels_of(&name);
        let mut matchers = Vec::new();
        if self.take_sign("{") {
            while !self.take_sign("}") {
                matchers.push(self.matcher(&name, &labels)?);
                let at = self.peek().0;
                if !self.take_sign(",") && self.peek().1 != Token::Sign("}") {
                    return error(at, "`,` or `}` is needed");
                }
            }
        }
        Ok(Node::Metric { name, matchers })
    }

    fn matcher(&mut self, metric: &str, labels: &[&str]) -> Result<Matcher, ExpressionError> {
        let (at, token) = self.take();
        let Token::Word(label) = token else {
            return error(at, "a label is needed, such as source=\"pg-main\"");
        };
        if !labels.contains(&label.as_str()) {
            return error(at, format!("{metric} has no label `{label}`, but {}", labels.join(", ")));
        }
        let equal = self.take_sign("=");
        if !equal && !self.take_sign("!=") {
            return error(at, format!("`{label}` is compared with `=` or `!=`"));
        }
        match self.take() {
            (_, Token::Text(value)) => Ok(Matcher { label, equal, value }),
            (at, _) => error(at, format!("the value of `{label}` is needed in quotes")),
        }
    }
}

fn binary(at: usize, operator: Operator, left: Node, right: Node) -> Result<Node, ExpressionError> {
    if operator.joins_conditions() {
        if !left.is_condition() || !right.is_condition() {
            return error(at, "a comparison is needed on both sides, such as `a > 0 and b > 0`");
        }
    } else if left.is_condition() || right.is_condition() {
        return error(at, "what was compared can not be compared or calculated with");
    } else if operator.is_comparison() && left.is_scalar() && right.is_scalar() {
        return error(at, "two numbers are compared: a metric is needed on one side");
    }
    Ok(Node::Binary { operator, left: Box::new(left), right: Box::new(right) })
}

/// The labels of a metric that exists.
fn labels_of(name: &str) -> Vec<&'static str> {
    let rows = CATALOGUE.iter().filter(|row| name.starts_with(row.name));
    let row: Option<&Definition> = rows.max_by_key(|row| row.name.len());
    let mut labels = row.map_or(Vec::new(), |row| row.labels.to_vec());
    if name.ends_with("_bucket") {
        labels.push("le");
    }
    labels
}

fn unknown_metric(name: &str) -> String {
    let names = || CATALOGUE.iter().map(|row| row.name);
    let words = |name: &str| name.split('_').map(str::to_owned).collect::<BTreeSet<_>>();
    let wanted = words(name);
    let common = |known: &str| words(known).intersection(&wanted).filter(|word| *word != "holdfast").count();
    let near = nearest(name, names())
        .or_else(|| nearest(&format!("holdfast_{name}"), names()))
        .or_else(|| names().max_by_key(|known| common(known)).filter(|known| common(known) > 0));
    match near {
        Some(near) => format!("there is no metric `{name}`; did you mean `{near}`?"),
        None => format!("there is no metric `{name}`"),
    }
}

//! Finds the paths in a source: enough of Rust's grammar for `use` trees and paths in expressions and types.

/// A path that is used: absolute within the crate where it begins with `crate`.
#[derive(Debug)]
pub(crate) struct Use {
    pub(crate) line: usize,
    pub(crate) path: Vec<String>,
}

/// Words and signs, comments and literals left out. `::` is one sign, so is each other character.
struct Token {
    line: usize,
    text: String,
}

impl Token {
    fn is(&self, text: &str) -> bool {
        self.text == text
    }

    fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let (mut tokens, mut index, mut line) = (Vec::new(), 0, 1);
    while index < chars.len() {
        let begun = index;
        let mut token = None;
        match at(index) {
            '/' if at(index + 1) == '/' => {
                while index < chars.len() && at(index) != '\n' {
                    index += 1;
                }
            }
            '/' if at(index + 1) == '*' => index = after_comment(&chars, index),
            '"' => index = after_string(&chars, index),
            'r' if matches!(at(index + 1), '"' | '#') && raw_string(&chars, index).is_some() => {
                index = raw_string(&chars, index).unwrap();
            }
            'r' if at(index + 1) == '#' => index += 2,
            '\'' => index = after_quote(&chars, index),
            ':' if at(index + 1) == ':' => {
                index += 2;
                token = Some("::".to_owned());
            }
            c if c.is_alphanumeric() || c == '_' => {
                while at(index).is_alphanumeric() || at(index) == '_' {
                    index += 1;
                }
                // What stands before a literal belongs to it: b"", br"", c"".
                let literal = matches!(at(index), '"' | '#') && at(begun).is_alphabetic();
                let raw =
                    literal && index - begun <= 2 && at(index - 1) == 'r' && raw_string(&chars, index - 1).is_some();
                if raw {
                    index = raw_string(&chars, index - 1).unwrap();
                } else {
                    token = Some(chars[begun..index].iter().collect());
                }
            }
            c => {
                index += 1;
                token = (!c.is_whitespace()).then(|| c.to_string());
            }
        }
        tokens.extend(token.map(|text| Token { line, text }));
        line += chars[begun..index.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

fn after_comment(chars: &[char], mut index: usize) -> usize {
    let mut depth = 0;
    while index < chars.len() {
        match (chars[index], chars.get(index + 1)) {
            ('/', Some('*')) => (depth, index) = (depth + 1, index + 2),
            ('*', Some('/')) => (depth, index) = (depth - 1, index + 2),
            _ => index += 1,
        }
        if depth == 0 {
            break;
        }
    }
    index
}

fn after_string(chars: &[char], begin: usize) -> usize {
    let mut index = begin + 1;
    while index < chars.len() && chars[index] != '"' {
        index += if chars[index] == '\\' { 2 } else { 1 };
    }
    index + 1
}

/// Where the raw string ends that begins at the `r`; none where it is none.
fn raw_string(chars: &[char], begin: usize) -> Option<usize> {
    let hashes = chars[begin + 1..].iter().take_while(|c| **c == '#').count();
    let mut index = begin + 1 + hashes;
    if chars.get(index) != Some(&'"') {
        return None;
    }
    loop {
        index += 1;
        if *chars.get(index)? == '"' && chars[index + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
        {
            return Some(index + 1 + hashes);
        }
    }
}

/// A character's end, or, where it is a lifetime, the place after its quote.
fn after_quote(chars: &[char], begin: usize) -> usize {
    match (chars.get(begin + 1), chars.get(begin + 2)) {
        (Some('\\'), _) => {
            let mut index = begin + 3;
            while index < chars.len() && chars[index] != '\'' {
                index += 1;
            }
            index + 1
        }
        (Some(_), Some('\'')) => begin + 3,
        _ => begin + 1,
    }
}

/// The words of a source: neither comments nor literals.
pub(crate) fn words(text: &str) -> Vec<String> {
    tokens(text).into_iter().filter(Token::is_word).map(|token| token.text).collect()
}

/// The modules that a source declares in files of their own.
pub(crate) fn modules_of(text: &str) -> Vec<String> {
    let tokens = tokens(text);
    tokens
        .windows(3)
        .filter(|three| three[0].is("mod") && three[2].is(";"))
        .map(|three| three[1].text.clone())
        .collect()
}

/// All paths of two words or more, and all that a `use` names, in a source of `module`. `self`, `super` and names of
/// modules that are declared inline are resolved.
pub(crate) fn uses(text: &str, module: &[String]) -> Vec<Use> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    // The inline modules that are open, each with the depth of braces in which it stands.
    let (mut inline, mut depth) = (Vec::<(String, usize)>::new(), 0);
    let mut index = 0;
    while index < tokens.len() {
        let token = &tokens[index];
        let follows = |ahead: usize, sign: &str| tokens.get(index + ahead).is_some_and(|token| token.is(sign));
        if token.is("mod") && follows(2, "{") {
            inline.push((tokens[index + 1].text.clone(), depth));
            index += 2;
            continue;
        }
        if token.is("{") {
            depth += 1;
        } else if token.is("}") {
            depth -= 1;
            if inline.last().is_some_and(|(_, at)| *at == depth) {
                inline.pop();
            }
        }
        let here = || [module, &inline.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()].concat();
        let is_use = token.is("use");
        let is_path = token.is_word() && (follows(1, "::") || token.is("crate"));
        if !is_use && !is_path {
            index += 1;
            continue;
        }
        index += usize::from(is_use);
        let mut paths = Vec::new();
        index = tree(&tokens, index, &[], &mut paths);
        found.extend(paths.into_iter().filter_map(|(line, path)| Some(Use { line, path: resolve(path, here())? })));
    }
    found
}

/// Reads a `use` tree, or a path, which is one without branches. Gives the place after it.
fn tree(tokens: &[Token], mut index: usize, before: &[String], paths: &mut Vec<(usize, Vec<String>)>) -> usize {
    let mut path = before.to_vec();
    let line = tokens.get(index).map_or(0, |token| token.line);
    while let Some(token) = tokens.get(index) {
        if token.is("::") {
            index += 1;
        } else if token.is("{") && (index == 0 || tokens[index - 1].is("::") || tokens[index - 1].is("use")) {
            index += 1;
            while tokens.get(index).is_some_and(|token| !token.is("}")) {
                index = tree(tokens, index, &path, paths);
                index += usize::from(tokens.get(index).is_some_and(|token| token.is(",")));
            }
            return index + 1;
        } else if token.is_word() || token.is("*") {
            // `a::self` is `a`.
            if !token.is("self") || path.is_empty() {
                path.push(token.text.clone());
            }
            index += 1;
            if !tokens.get(index).is_some_and(|token| token.is("::")) {
                break;
            }
        } else {
            // A path's generic arguments, or what only macros have: the paths in it are found by themselves.
            index += usize::from(path.len() == before.len());
            break;
        }
    }
    if tokens.get(index).is_some_and(|token| token.is("as")) {
        index += 2;
    }
    if path.len() > before.len() || !path.is_empty() {
        paths.push((line, path));
    }
    index
}

/// A path as seen from the crate's root; none where it says nothing about modules (`Self::new`).
fn resolve(path: Vec<String>, here: Vec<String>) -> Option<Vec<String>> {
    let mut place = here;
    let mut rest = path.as_slice();
    match rest.first()?.as_str() {
        "Self" => return None,
        "crate" => place.clear(),
        "self" | "super" => {}
        _ => return Some(path),
    }
    if matches!(rest[0].as_str(), "crate" | "self") {
        rest = &rest[1..];
    }
    while rest.first().is_some_and(|word| word == "super") {
        place.pop();
        rest = &rest[1..];
    }
    Some([&["crate".to_owned()][..], &place, rest].concat())
}

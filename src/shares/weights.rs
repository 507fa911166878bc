//! How many callers a caller counts as, by its name.

use std::collections::HashMap;

/// The heaviest weight of a caller.
pub const MAX_WEIGHT: u16 = 1000;

/// Callers' weights, by name. Who is not named has the weight 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weights(HashMap<String, u16>);

impl Weights {
    /// Reads a file of weights: on each line a caller's name, `=`, and its weight, from 1 to
    /// [`MAX_WEIGHT`]. Empty lines and lines that begin with `#` are for people.
    ///
    /// # Errors
    ///
    /// The line that is wrong, by its number.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "the weights are not text".to_owned())?;
        let lines = text.lines().map(str::trim).enumerate();
        let mut weights = HashMap::new();
        for (at, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let line_number = at + 1;
            // A name may have a `=` itself.
            let (name, weight) = line
                .rsplit_once('=')
                .ok_or_else(|| format!("line {line_number} of the weights is not name=weight"))?;
            let weight = weight.trim().parse().ok();
            let weight = weight.filter(|weight| (1..=MAX_WEIGHT).contains(weight));
            let weight = weight.ok_or_else(|| {
                format!("line {line_number} of the weights: a weight is 1 to {MAX_WEIGHT}")
            })?;
            if weights.insert(name.trim().to_owned(), weight).is_some() {
                return Err(format!(
                    "line {line_number} of the weights names a caller again"
                ));
            }
        }
        Ok(Self(weights))
    }

    /// How many callers are named.
    pub fn summary(&self) -> String {
        format!("weights of {} callers", self.0.len())
    }

    /// The weight of the caller of this name.
    pub fn of(&self, name: &str) -> u16 {
        self.0.get(name).copied().unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_lines_of_names() {
        let text = "# who\n\na = 3\nspiffe://d/x?y=z=1000\n";
        let weights = Weights::parse(text.as_bytes()).expect("weights");
        let of = ["a", "spiffe://d/x?y=z", "b"].map(|name| weights.of(name));
        assert_eq!(of, [3, 1000, 1]);
        for wrong in ["a", "a=0", "a=1001", "a=x", "a=1\na=2", "a=-1"] {
            Weights::parse(wrong.as_bytes()).expect_err(wrong);
        }
    }
}

//! `build/sample.rs` is what the generator writes.

use std::{env, fs};

#[test]
fn the_sample_shows_what_the_generator_writes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/build/sample.rs");
    let generated = include_str!(concat!(env!("OUT_DIR"), "/codec.rs"));
    let begin = generated
        .find("impl Object for ToolChoice {")
        .expect("the generator writes ToolChoice");
    let end = generated[begin..]
        .find("impl Object for ToolChoiceFunction {")
        .expect("and the next message");
    let generated = generated[begin..begin + end].trim_end();

    let sample = fs::read_to_string(path).expect("the sample is there");
    let (head, shown) = sample
        .split_once("\n\n")
        .expect("a line parts the sample's head from the rest");
    if env::var_os("RENEW_SAMPLE").is_some() {
        fs::write(path, format!("{head}\n\n{generated}\n")).expect("the sample is written");
    } else {
        assert_eq!(
            shown.trim_end(),
            generated,
            "the generator writes something else; after a review: RENEW_SAMPLE=1 cargo test --test codec sample"
        );
    }
}

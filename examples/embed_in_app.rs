//! The program of the README: an application that answers a question with a language model.

use std::io::Write;

fn main() -> rillm::Result<()> {
    let model = std::env::args().nth(1).unwrap_or("HuggingFaceTB/SmolLM2-135M-Instruct".into());
    let lm = rillm::load(model)?; // a folder, a .gguf file, or a repository of the hub
    let mut answer = lm.chat("Why is the sky blue?").max_tokens(128).stream()?;
    for piece in &mut answer {
        print!("{}", piece?.text);
        std::io::stdout().flush().ok();
    }
    println!("\n[{:.1} tokens a second]", answer.statistics().generation_tps);
    Ok(())
}

//! A family written outside the workspace, through traits only: a decoder whose attention and feed-forward layer
//! read the same norm and run side by side (as GPT-J and Cohere's models do). Needs no download: its weights are
//! random, and so are the tokens that it prints.

use std::error::Error;
use std::sync::Arc;

use rillm::generate::{Generator, LocalSession, Request};
use rillm::kvcache::{CacheKind, SequenceCache};
use rillm::models::{Config, Family, Registry};
use rillm::nn::{
    Attention, AttentionSpec, CausalLm, Embedding, Mixer, Mlp, MlpSpec, Norm, Pass, RotaryEmbedding,
    WeightSource, Weights,
};
use rillm::quant::RawTensor;
use rillm::tensor::cpu::Cpu;
use rillm::tensor::{Activation, AttnParams, Backend, Batch, Ids};

/// The family: which configurations it reads, and the model it makes of one.
#[derive(Debug)]
struct ParallelFamily;

impl<B: Backend> Family<B> for ParallelFamily {
    fn model_types(&self) -> &[&'static str] {
        &["parallel"]
    }

    fn load(
        &self,
        c: &Config<'_>,
        source: &dyn WeightSource,
        be: &B,
    ) -> rillm::models::Result<Box<dyn CausalLm<B>>> {
        let model = Weights::load(source, be, |_| false, |w| Parallel::load(w, c))?;
        Ok(Box::new(model))
    }
}

/// `x + attention(norm(x)) + mlp(norm(x))`, layer by layer; the embedding is the head.
#[derive(Debug)]
struct Parallel<B: Backend> {
    embed: Embedding<B>,
    layers: Vec<(Norm<B>, Attention<B>, Mlp<B>)>,
    norm: Norm<B>,
    vocab: usize,
    context: usize,
}

impl<B: Backend> Parallel<B> {
    fn load(w: &Weights<'_, B>, c: &Config<'_>) -> rillm::models::Result<Self> {
        let (dim, heads, vocab) = (c.count("hidden_size")?, c.count("heads")?, c.count("vocab_size")?);
        let (head_dim, norm) = ((dim / heads).max(2), c.rms_norm(1e-5)?);
        let attn = AttentionSpec {
            rope: Some(Arc::new(RotaryEmbedding::new(c.rope(head_dim, 10_000.0, None)?))),
            ..AttentionSpec::new(dim, AttnParams::new(heads, heads, head_dim))
        };
        let (act, hidden) = (Activation::Silu, c.count("intermediate_size")?);
        let mlp = MlpSpec::new([dim, hidden], act);
        let layer = |i| -> rillm::models::Result<_> {
            let w = w.at("blocks").at(i);
            let attention = Attention::load(&w.at("attention"), attn.clone())?;
            Ok((w.norm("norm", dim, norm)?, attention, Mlp::load(&w.at("mlp"), mlp)?))
        };
        Ok(Self {
            embed: Embedding::load(&w.at("embed"), vocab, dim)?,
            layers: (0..c.count("num_hidden_layers")?).map(layer).collect::<Result<_, _>>()?,
            norm: w.norm("norm", dim, norm)?,
            vocab,
            context: c.count("max_position_embeddings")?,
        })
    }
}

impl<B: Backend> CausalLm<B> for Parallel<B> {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn context(&self) -> Option<usize> {
        Some(self.context)
    }

    fn caches(&self) -> Vec<CacheKind> {
        vec![CacheKind::Dense; self.layers.len()]
    }

    fn weight_bytes(&self, be: &B) -> usize {
        let layers = self.layers.iter().map(|(_, attention, mlp)| attention.bytes(be) + mlp.bytes(be));
        layers.sum::<usize>() + self.embed.bytes(be)
    }

    fn forward(
        &self,
        be: &B,
        ids: Ids<'_, B>,
        batch: &Batch,
        caches: &mut [SequenceCache<B>],
        logits_of: &[usize],
    ) -> rillm::nn::Result<Option<B::Tensor>> {
        let mut x = self.embed.forward(be, ids)?;
        for (i, (norm, attention, mlp)) in self.layers.iter().enumerate() {
            let pass = Pass::new(i, batch);
            let a = attention.mix(be, norm.of(&x), &pass, caches)?;
            let m = mlp.mix(be, norm.of(&x), &pass, caches)?;
            x = attention.output(be, a, Some(x))?;
            x = mlp.output(be, m, Some(x))?;
        }
        if logits_of.is_empty() {
            return Ok(None);
        }
        let x = be.take_rows(&x, logits_of)?;
        Ok(Some(self.embed.as_head(be, self.norm.of(&x))?))
    }
}

/// Weights that look random, of whatever shape is asked for. A real family's come from a checkpoint:
/// `rillm::Loader::new("folder").family(ParallelFamily).load()`.
struct RandomWeights;

impl WeightSource for RandomWeights {
    fn get(&self, _: &str) -> rillm::nn::Result<Option<RawTensor<'_>>> {
        Ok(None)
    }

    fn get_shaped(&self, name: &str, want: &[usize]) -> rillm::nn::Result<Option<RawTensor<'_>>> {
        let seed = name.bytes().fold(0, |hash: usize, byte| (hash * 31 + usize::from(byte)) % 65_521);
        let value = |i| ((seed + i * 7919) as f32).sin();
        let values: Vec<f32> = (0..want.iter().product()).map(value).collect();
        let error = |source| rillm::nn::Error::Quant { name: name.to_owned(), source };
        RawTensor::from_f32(want.to_vec(), &values).map(Some).map_err(error)
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let config = serde_json::json!({
        "model_type": "parallel", "hidden_size": 32, "heads": 4, "intermediate_size": 64,
        "num_hidden_layers": 2, "vocab_size": 64, "max_position_embeddings": 128,
    });
    let cpu = Cpu::new()?;
    let mut registry = Registry::default();
    registry.add(ParallelFamily);
    let model = registry.load(&Config::new(&config)?, &RandomWeights, &cpu)?;
    let session = LocalSession::new(cpu, model, None);
    for token in Generator::new(session, Request::new([1, 2, 3]).max_tokens(16))? {
        print!("{} ", token?.id);
    }
    println!();
    Ok(())
}

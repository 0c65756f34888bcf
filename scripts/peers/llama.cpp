// llama.cpp's speed: MODEL THREADS PROMPT:GEN:BATCH,.. -> one JSON line a case. Default parameters (flash attention
// auto, f16 cache, mapped file); prompts in parts of 512; not llama-bench, whose protocol other engines don't have.
#include "llama.h"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static long peak_bytes() {
    char line[256];
    long kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, "VmHWM:", 6)) kib = atol(line + 6);
    if (file) fclose(file);
    return kib * 1024;
}

struct Run {
    llama_context *context;
    int vocab;
    int batch;
    std::vector<int> position;
    uint32_t seed = 1;

    llama_token random() { return 1000 + ((seed = seed * 1664525u + 1013904223u) >> 8) % 30000; }

    // Feeds `tokens` to sequence `first` and those after it, one each; returns the greedy next tokens.
    std::vector<llama_token> feed(const std::vector<std::vector<llama_token>> &tokens, int first) {
        llama_batch rows = llama_batch_init(512 * (int) tokens.size(), 0, batch);
        std::vector<int> last;
        for (size_t s = 0; s < tokens.size(); s++) {
            for (size_t i = 0; i < tokens[s].size(); i++) {
                int n = rows.n_tokens++;
                rows.token[n] = tokens[s][i];
                rows.pos[n] = position[first + s]++;
                rows.n_seq_id[n] = 1;
                rows.seq_id[n][0] = first + s;
                rows.logits[n] = i + 1 == tokens[s].size();
            }
            last.push_back(rows.n_tokens - 1);
        }
        if (llama_decode(context, rows)) exit(1);
        std::vector<llama_token> next;
        for (int row : last) {
            const float *logits = llama_get_logits_ith(context, row);
            // In two passes, of which the compiler makes vectors.
            float most = logits[0];
            for (int i = 1; i < vocab; i++) most = logits[i] > most ? logits[i] : most;
            int best = 0;
            while (best + 1 < vocab && logits[best] != most) best++;
            next.push_back(best);
        }
        llama_batch_free(rows);
        return next;
    }

    // Prefills a prompt for each sequence and decodes `steps` tokens after them; the seconds of both.
    std::pair<double, double> measure(int prompt, int steps) {
        llama_memory_clear(llama_get_memory(context), true);
        position.assign(batch, 0);
        std::vector<llama_token> next;
        double start = now();
        for (int s = 0; s < batch; s++) {
            llama_token after = 0;
            for (int done = 0; done < prompt; done += 512) {
                std::vector<llama_token> part(prompt - done < 512 ? prompt - done : 512);
                for (auto &token : part) token = random();
                after = feed({part}, s)[0];
            }
            next.push_back(after);
        }
        double first = now() - start;
        for (int i = 0; i < steps; i++) {
            std::vector<std::vector<llama_token>> rows;
            for (llama_token token : next) rows.push_back({token});
            next = feed(rows, 0);
        }
        return {first, now() - start - first};
    }
};

int main(int count, char **arguments) {
    if (count != 4) return 2;
    int threads = atoi(arguments[2]);
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    double start = now(), load = 0;
    llama_backend_init();
    llama_model *model = llama_model_load_from_file(arguments[1], llama_model_default_params());
    if (!model) return 1;
    for (char *text = strtok(arguments[3], ","); text; text = strtok(nullptr, ",")) {
        int prompt, generate, batch;
        if (sscanf(text, "%d:%d:%d", &prompt, &generate, &batch) != 3) return 2;
        llama_context_params params = llama_context_default_params();
        // Room for the warm-up; a multiple of 256 for each sequence, as llama.cpp pads it.
        params.n_ctx = (prompt + generate + 24 + 255) / 256 * 256 * batch;
        params.n_seq_max = batch;
        params.n_threads = params.n_threads_batch = threads;
        Run run{llama_init_from_model(model, params), llama_vocab_n_tokens(llama_model_get_vocab(model)), batch, {}};
        if (!run.context) return 1;
        if (load == 0) load = now() - start;
        run.measure(16, 4);
        auto [first, rest] = run.measure(prompt, generate - 1);
        double generated = generate > 1 ? batch * (generate - 1) / rest : 0;
        printf("{\"prompt_tokens\":%d,\"batch\":%d,\"prompt_tps\":%f,\"generation_tps\":%f,\"load_s\":%f,"
               "\"peak_rss_bytes\":%ld}\n", prompt, batch, batch * prompt / first, generated, load, peak_bytes());
        fflush(stdout);
        llama_free(run.context);
    }
}

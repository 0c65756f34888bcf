#!/usr/bin/env python3
"""Rust declarations of mlx-c's headers, as bindgen would write them for mlx-sys, without libclang.

    bindings.py FOLDER >bindings.rs     FOLDER holds mlx-c's headers

Not a parser of C: it knows the few forms that mlx-c 0.7 uses, and stops at any other.
"""

import pathlib
import re
import sys

# The types that no header declares in a form read here. mlx-rs wants the half types on every processor and half.h has
# them for ARM only; shim.cpp defines their functions.
PREAMBLE = """\
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq, Hash)]
pub struct __BindgenComplex<T> {
    pub re: T,
    pub im: T,
}
pub type mlx_complex64_t = __BindgenComplex<f32>;
#[repr(transparent)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct float16_t(pub u16);
pub type bfloat16_t = u16;
#[repr(C)]
pub struct FILE {
    _private: [u8; 0],
}
"""
C_TYPES = {
    "void": "::std::os::raw::c_void",
    "char": "::std::os::raw::c_char",
    "int": "::std::os::raw::c_int",
    "float": "f32",
    "double": "f64",
    "bool": "bool",
    "size_t": "usize",
    "uintptr_t": "usize",
    **{f"int{bits}_t": f"i{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}_t": f"u{bits}" for bits in (8, 16, 32, 64)},
    **{name: name for name in ("float16_t", "bfloat16_t", "FILE")},
}


def split(text, separator):
    """The parts between separators that are in no bracket."""
    part, depth = "", 0
    for char in text:
        depth += (char in "({") - (char in ")}")
        if char == separator and depth == 0:
            yield part.strip()
            part = ""
        else:
            part += char
    if part.strip():
        yield part.strip()


def declarator(text):
    """Rust's type, and the name if there is one, of `const int* shape` or `void (*dtor)(void*)`."""
    if function := re.fullmatch(r"(.+?) ?\(\*(\w*)\)\((.*)\)", text):
        result, name, parameters = function.groups()
        return f'::std::option::Option<unsafe extern "C" fn{signature(result, parameters)}>', name
    rust, name, const = None, None, False
    for token in re.findall(r"\w+|\S", text):
        if token == "const":
            const = True
        elif token == "*" and rust and not name:
            rust, const = f"*{'const' if const else 'mut'} {rust}", False
        elif rust is None and (token in C_TYPES or token.startswith("mlx_")):
            rust = C_TYPES.get(token, token)
        elif rust and not name and re.fullmatch(r"[A-Za-z_]\w*", token):
            name = token
        else:
            sys.exit(f"bindings.py: not understood: {text}")
    return rust, name


def signature(result, parameters):
    """`(r#shape: *const c_int, ..) -> c_int`."""
    rust = []
    for index, parameter in enumerate(split("" if parameters == "void" else parameters, ",")):
        kind, name = ("...", None) if parameter == "..." else declarator(parameter)
        rust.append(kind if kind == "..." else f"r#{name or f'arg{index + 1}'}: {kind}")
    arrow = "" if result == "void" else f" -> {declarator(result)[0]}"
    return f"({', '.join(rust)}){arrow}"


def declaration(text):
    """The Rust of one declaration."""
    if record := re.fullmatch(r"typedef struct (\w+) \{(.*)\} (\w+)", text):
        tag, fields, name = record.groups()
        fields = [declarator(field) for field in split(fields, ";")]
        body = "".join(f"    pub r#{field}: {kind},\n" for kind, field in fields)
        return f"#[repr(C)]\n#[derive(Debug, Copy, Clone)]\npub struct {tag} {{\n{body}}}\npub type {name} = {tag};\n"
    if choice := re.fullmatch(r"typedef enum (\w+) \{([\w, ]*)\} (\w+)", text):
        tag, values, name = choice.groups()
        constants = (f"pub const {tag}_{value}: {tag} = {n};\n" for n, value in enumerate(split(values, ",")))
        return f"pub type {tag} = ::std::os::raw::c_uint;\npub type {name} = {tag};\n{''.join(constants)}"
    if text.startswith("typedef"):
        kind, name = declarator(text.removeprefix("typedef "))
        return f"pub type {name} = {kind};\n"
    if function := re.fullmatch(r"([\w* ]+?) ?(\b\w+)\((.*)\)", text):
        result, name, parameters = function.groups()
        return f'extern "C" {{\n    pub fn {name}{signature(result, parameters)};\n}}\n'
    sys.exit(f"bindings.py: not understood: {text}")


headers = sorted(path for path in pathlib.Path(sys.argv[1]).glob("*.h") if path.name != "half.h")
source = "".join(path.read_text() for path in headers)
source = re.sub(r"/\*.*?\*/|//[^\n]*", " ", source, flags=re.S)
source = re.sub(r'#ifdef __cplusplus\s*(extern "C" \{|\})\s*#endif|#ifdef _MSC_VER.*?#else', " ", source, flags=re.S)
source = re.sub(r"^ *#.*$", " ", source, flags=re.M)
print(PREAMBLE, end="")
for text in split(" ".join(source.split()), ";"):
    # Neither a constant without a symbol, nor the type of the preamble, nor a structure that is declared again.
    if not re.fullmatch(r"static .*|typedef float _Complex mlx_complex64_t|typedef struct (\w+)_ \1", text):
        print(declaration(text), end="")

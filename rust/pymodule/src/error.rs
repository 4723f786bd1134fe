//! The only place where a core error becomes a Python exception. The match names every
//! variant, so a new one does not compile until it is mapped.

use std::io::ErrorKind;

use pyo3::create_exception;
use pyo3::exceptions::{
    PyBlockingIOError, PyFileNotFoundError, PyIsADirectoryError, PyKeyError, PyKeyboardInterrupt,
    PyMemoryError, PyOSError, PyPermissionError, PyRuntimeError, PyValueError,
};
use pyo3::PyErr;
use sparse_retrieval::Error;

create_exception!(
    sparse_retrieval,
    IndexFormatError,
    PyValueError,
    "A file is not a sound index file; the message says what is wrong and where."
);

/// The Python exception of a core error.
pub fn to_python(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Argument(_) => PyValueError::new_err(message),
        Error::Format { .. } => IndexFormatError::new_err(message),
        Error::Locked { .. } => PyBlockingIOError::new_err(message),
        Error::Stale { .. } => PyRuntimeError::new_err(message),
        Error::UnknownId(_) => PyKeyError::new_err(message),
        Error::OutOfMemory { .. } => PyMemoryError::new_err(message),
        Error::Interrupted => PyKeyboardInterrupt::new_err(message),
        Error::Io { source, .. } => match source.kind() {
            ErrorKind::NotFound => PyFileNotFoundError::new_err(message),
            ErrorKind::PermissionDenied => PyPermissionError::new_err(message),
            ErrorKind::IsADirectory => PyIsADirectoryError::new_err(message),
            _ => PyOSError::new_err(message),
        },
    }
}

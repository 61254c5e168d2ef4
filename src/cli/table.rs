//! Tables: in columns on a terminal, else with one space between, for `cut` and `awk`.

/// How wide each column has to be for its title and what stands below it.
pub(super) fn fitting<const N: usize>(titles: &[&str; N], rows: impl IntoIterator<Item = [String; N]>) -> [usize; N] {
    let mut widths = titles.map(str::len);
    for cells in rows {
        for (width, cell) in widths.iter_mut().zip(&cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    widths
}

/// The cells side by side; without widths they aren't padded.
pub(super) fn row<const N: usize>(cells: &[String; N], widths: Option<&[usize; N]>) -> String {
    match widths {
        None => cells.join(" "),
        Some(widths) => {
            let padded = cells.iter().zip(widths).map(|(cell, &width)| format!("{cell:<width$}"));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        }
    }
}

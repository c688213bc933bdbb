//! The table: one line per figure, and a foot that says what was compared.

/// Where a lower ratio stands against its goal.
pub struct Figure {
    /// What is compared.
    pub name: String,
    /// One ratio per turn.
    pub ratios: Vec<f64>,
    /// What it should be at most; `None`: shown beside, nobody's goal.
    pub goal: Option<f64>,
    /// Median of our side, with its unit.
    pub ours: String,
    /// Median of the other side, with its unit.
    pub floor: String,
}

/// All figures of one part.
#[derive(Default)]
pub struct Part {
    /// The lines.
    pub figures: Vec<Figure>,
    /// What each side does, and how it was measured.
    pub foot: Vec<String>,
}

impl Figure {
    /// A ratio of times, taken turn by turn. Both lists are seconds.
    pub fn of_seconds(name: &str, goal: Option<f64>, ours: &[f64], floor: &[f64]) -> Self {
        let ratios = ours.iter().zip(floor).map(|(ours, floor)| ours / floor).collect();
        Self { name: name.to_owned(), ratios, goal, ours: duration(median(ours)), floor: duration(median(floor)) }
    }
}

/// The middle one; between two, their mean.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The value that nine in ten do not exceed (nearest rank).
pub fn p90(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let rank = (sorted.len() * 9).div_ceil(10);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Seconds as people read them.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.001 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}

/// Prints all parts.
pub fn print(parts: &[Part]) {
    let figures: Vec<&Figure> = parts.iter().flat_map(|part| &part.figures).collect();
    let width = figures.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0);
    println!("\n{:width$}  {:>7}  {:>7}  {:>6}  {:>12}  {:>12}  {:>3}", "figure", "median", "p90", "goal", "ours", "floor", "n");
    for figure in figures {
        let goal = figure.goal.map_or_else(|| "-".to_owned(), |goal| format!("{goal}"));
        println!(
            "{:width$}  {:>7.3}  {:>7.3}  {goal:>6}  {:>12}  {:>12}  {:>3}",
            figure.name,
            median(&figure.ratios),
            p90(&figure.ratios),
            figure.ours,
            figure.floor,
            figure.ratios.len()
        );
    }
    println!("\nEach figure is ours / floor, one ratio per turn (n), both sides in one run; goals are upper limits of the median.");
    for line in parts.iter().flat_map(|part| &part.foot) {
        println!("- {line}");
    }
}

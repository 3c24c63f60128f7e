//! The mathematics: weighted sum, TOPSIS, and how far each weight may move before the winner
//! changes. Pure functions of a [`Problem`]; no value here is ever infinite or not a number,
//! whatever finite scores and weights come in.
//!
//! The weighted sum decides, since a buyer can follow it by hand; TOPSIS is a second opinion.

#![expect(clippy::float_arithmetic, reason = "scores are not money")]

use super::inputs::{Choice, Criterion, Direction, Problem};

/// Scores nearer than this are a tie: far above what rounding does to them, far below what any
/// buyer's numbers can mean.
const TIE: f64 = 1e-9;

/// Everything that follows from a [`Problem`]. Vectors are in the order of its options or criteria.
#[derive(Clone, Debug)]
pub(super) struct Analysis {
    /// What each criterion is worth; the sum is 1.
    pub(super) weights: Vec<f64>,
    /// By option, then criterion: 0 for the worst score of the column, 1 for the best.
    pub(super) benefits: Vec<Vec<f64>>,
    /// Criteria in which all options are equal.
    pub(super) constant: Vec<bool>,
    pub(super) weighted_sum: Ranking,
    pub(super) topsis: Ranking,
    /// Kendall's tau-b between the two rankings: 1 is the same order, -1 the opposite one. `None`
    /// where a method holds all options equal.
    pub(super) kendall_tau: Option<f64>,
    /// For each criterion the smallest change of its weight that makes another option win.
    pub(super) flips: Vec<Option<Flip>>,
    /// The criterion whose flip is the nearest.
    pub(super) most_critical: Option<usize>,
}

/// Options by value, from 0 to 1, best first.
#[derive(Clone, Debug)]
pub(super) struct Ranking {
    /// By option.
    pub(super) values: Vec<f64>,
    /// By option, from 1; ties share a rank, and the ranks after them are skipped.
    pub(super) ranks: Vec<usize>,
    /// Options, best first; ties stand in the order of the inputs.
    pub(super) order: Vec<usize>,
}

/// Where one weight, with the others scaled to make up for it, hands the win to another option.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flip {
    /// The normalised weight at which the winner and `to` are level.
    pub(super) at: f64,
    /// The same on the buyer's scale, the other weights left as they are; `None` where that is more
    /// than a number holds.
    pub(super) at_on_input_scale: Option<f64>,
    /// Who wins beyond.
    pub(super) to: usize,
    /// Whether the weight has to grow.
    pub(super) upwards: bool,
    /// How far the normalised weight has to move, at least 0.
    pub(super) distance: f64,
}

impl Analysis {
    /// Works `problem` out.
    pub(super) fn of(problem: &Problem) -> Self {
        let weights = normalized_weights(&problem.criteria);
        let columns: Vec<Vec<f64>> = (0..problem.criteria.len())
            .map(|criterion| problem.options.iter().map(|option| option.scores[criterion]).collect())
            .collect();
        let constant = columns.iter().map(|column| column.iter().all(|score| *score == column[0])).collect();
        let scaled: Vec<_> = columns
            .iter()
            .zip(&problem.criteria)
            .map(|(column, criterion)| benefits(column, criterion.direction))
            .collect();
        let benefits: Vec<Vec<f64>> = (0..problem.options.len())
            .map(|option| scaled.iter().map(|column| column[option]).collect())
            .collect();

        let weighted_sum = Ranking::of(benefits.iter().map(|row| dot(&weights, row)).collect());
        let topsis = Ranking::of(closeness(&columns, &weights, &problem.criteria, &problem.options));
        let flips: Vec<_> = (0..weights.len())
            .map(|criterion| flip(criterion, &weights, &benefits, &weighted_sum, &problem.criteria))
            .collect();
        let mut most_critical: Option<(usize, f64)> = None;
        for (criterion, flip) in flips.iter().enumerate() {
            let Some(Flip { distance, .. }) = *flip else { continue };
            // Level to within rounding, the first of the inputs stays; two criteria always are.
            if most_critical.is_none_or(|(_, nearest)| distance + TIE < nearest) {
                most_critical = Some((criterion, distance));
            }
        }
        let most_critical = most_critical.map(|(criterion, _)| criterion);
        let kendall_tau = kendall_tau(&weighted_sum.ranks, &topsis.ranks);
        Self { weights, benefits, constant, weighted_sum, topsis, kendall_tau, flips, most_critical }
    }

    /// The option with the highest weighted sum, the first of the inputs where several share it.
    pub(super) fn winner(&self) -> usize {
        self.weighted_sum.order[0]
    }

    /// The best of the other options.
    pub(super) fn runner_up(&self) -> usize {
        self.weighted_sum.order[1]
    }

    /// How far the winner leads, 0 in a tie.
    pub(super) fn margin(&self) -> f64 {
        self.weighted_sum.values[self.winner()] - self.weighted_sum.values[self.runner_up()]
    }

    /// The options that share the first place with the winner.
    pub(super) fn tied_with_winner(&self) -> impl Iterator<Item = usize> {
        let ranks = &self.weighted_sum.ranks;
        self.weighted_sum.order.iter().copied().skip(1).take_while(|option| ranks[*option] == 1)
    }

    /// What a criterion adds to an option's weighted sum.
    pub(super) fn contribution(&self, option: usize, criterion: usize) -> f64 {
        self.weights[criterion] * self.benefits[option][criterion]
    }
}

impl Ranking {
    /// Ranks `values`, which it cuts to steps of [`TIE`], so that being tied is transitive.
    fn of(values: Vec<f64>) -> Self {
        let values: Vec<f64> = values.into_iter().map(|value| (value / TIE).round() * TIE).collect();
        let mut order: Vec<usize> = (0..values.len()).collect();
        // Stable: ties keep the order of the inputs.
        order.sort_by(|left, right| values[*right].total_cmp(&values[*left]));
        let mut ranks = vec![0; values.len()];
        for (place, option) in order.iter().enumerate() {
            ranks[*option] = match place.checked_sub(1).map(|before| order[before]) {
                Some(before) if values[before] == values[*option] => ranks[before],
                _ => place + 1,
            };
        }
        Self { values, ranks, order }
    }
}

/// Weights that sum to 1. Divided by the largest first: the sum of finite weights may be infinite.
fn normalized_weights(criteria: &[Criterion]) -> Vec<f64> {
    let largest = criteria.iter().map(|criterion| criterion.weight).fold(0.0, f64::max);
    let sum: f64 = criteria.iter().map(|criterion| criterion.weight / largest).sum();
    criteria.iter().map(|criterion| criterion.weight / largest / sum).collect()
}

/// Min-max normalisation: the best score of a column becomes 1, the worst 0. In a column of equal
/// scores nobody is worse than the best, so all are 1.
fn benefits(column: &[f64], direction: Direction) -> Vec<f64> {
    let low = column.iter().copied().fold(f64::INFINITY, f64::min);
    let high = column.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if low == high {
        return vec![1.0; column.len()];
    }
    // Halves, where the whole range is more than a number holds.
    let unit = if (high - low).is_finite() { 1.0 } else { 0.5 };
    let range = high * unit - low * unit;
    column
        .iter()
        .map(|score| match direction {
            Direction::Maximize => (score * unit - low * unit) / range,
            Direction::Minimize => (high * unit - score * unit) / range,
        })
        .collect()
}

/// TOPSIS: how near each option is to the best imaginable one, against the worst imaginable, from 0
/// to 1. Where the two are the same no option is nearer than another, and all get one half.
fn closeness(columns: &[Vec<f64>], weights: &[f64], criteria: &[Criterion], options: &[Choice]) -> Vec<f64> {
    let weighted: Vec<(Vec<f64>, f64, f64)> = columns
        .iter()
        .zip(weights)
        .zip(criteria)
        .map(|((column, weight), criterion)| {
            let column: Vec<f64> = unit_vector(column).iter().map(|value| value * weight).collect();
            let low = column.iter().copied().fold(f64::INFINITY, f64::min);
            let high = column.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            match criterion.direction {
                Direction::Maximize => (column, high, low),
                Direction::Minimize => (column, low, high),
            }
        })
        .collect();
    (0..options.len())
        .map(|option| {
            let to_best = length(weighted.iter().map(|(column, best, _)| column[option] - best));
            let to_worst = length(weighted.iter().map(|(column, _, worst)| column[option] - worst));
            let both = to_best + to_worst;
            if both == 0.0 { 0.5 } else { to_worst / both }
        })
        .collect()
}

/// `column` at length 1, or as it is when all of it is zero.
fn unit_vector(column: &[f64]) -> Vec<f64> {
    let largest = column.iter().copied().map(f64::abs).fold(0.0, f64::max);
    if largest == 0.0 {
        return column.to_vec();
    }
    // Scaled first: squares of huge scores are infinite, and of tiny ones zero.
    let scaled: Vec<f64> = column.iter().map(|score| score / largest).collect();
    let length = dot(&scaled, &scaled).sqrt();
    scaled.iter().map(|score| score / length).collect()
}

/// The Euclidean length, safe from squares too small to hold.
fn length(differences: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = differences.clone().map(f64::abs).fold(0.0, f64::max);
    if largest == 0.0 {
        return 0.0;
    }
    largest
        * differences.map(|difference| (difference / largest) * (difference / largest)).sum::<f64>().sqrt()
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

/// The nearest weight of `criterion` beyond which another option wins.
///
/// With the weight at `t` and the others scaled to sum to `1 - t`, each option's score is the line
/// `t * own + (1 - t) * rest`. The winner's lead over a rival is a line too, so it changes sign once
/// at most, and where is a division, not a search.
fn flip(
    criterion: usize,
    weights: &[f64],
    benefits: &[Vec<f64>],
    ranking: &Ranking,
    criteria: &[Criterion],
) -> Option<Flip> {
    let others = |index: &usize| *index != criterion;
    let others_sum: f64 = (0..weights.len()).filter(others).map(|index| weights[index]).sum();
    if others_sum == 0.0 {
        // The only weight there is: no other one can make up for a change.
        return None;
    }
    let rest = |option: usize| -> f64 {
        let sum: f64 =
            (0..weights.len()).filter(others).map(|index| weights[index] * benefits[option][index]).sum();
        sum / others_sum
    };
    let winner = ranking.order[0];
    let now = weights[criterion];
    let (winner_own, winner_rest) = (benefits[winner][criterion], rest(winner));

    // The nearest crossing; of several at one place the steepest, since it leads beyond.
    let mut nearest: Option<(Flip, f64)> = None;
    for rival in ranking.order.iter().copied().skip(1) {
        let lead_at_none = winner_rest - rest(rival);
        let lead_at_all = winner_own - benefits[rival][criterion];
        let upwards = match (lead_at_none < -TIE, lead_at_all < -TIE) {
            (false, true) => true,
            (true, false) => false,
            // Ahead all along; behind all along cannot be, for it is ahead or level now.
            _ => continue,
        };
        let slope = lead_at_all - lead_at_none;
        let crossing = -lead_at_none / slope;
        // Level already: rounding may have put the crossing on the wrong side.
        let at = if upwards { crossing.clamp(now, 1.0) } else { crossing.clamp(0.0, now) };
        let distance = (at - now).abs();
        let nearer = nearest.is_none_or(|(known, known_slope)| {
            distance + TIE < known.distance
                || ((distance - known.distance).abs() <= TIE
                    && upwards == known.upwards
                    && known_slope < slope.abs())
        });
        if nearer {
            let flip = Flip { at, at_on_input_scale: None, to: rival, upwards, distance };
            nearest = Some((flip, slope.abs()));
        }
    }
    nearest.map(|(flip, _)| Flip { at_on_input_scale: input_scale(flip.at, criterion, criteria), ..flip })
}

/// The weight to hand in for `criterion` so that its normalised weight is `at`.
fn input_scale(at: f64, criterion: usize, criteria: &[Criterion]) -> Option<f64> {
    let others: f64 = criteria
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != criterion)
        .map(|(_, other)| other.weight)
        .sum();
    Some(at / (1.0 - at) * others).filter(|weight| weight.is_finite())
}

/// Kendall's tau-b, which allows for ties.
fn kendall_tau(left: &[usize], right: &[usize]) -> Option<f64> {
    let (mut agreeing, mut left_pairs, mut right_pairs) = (0.0, 0.0, 0.0);
    for first in 0..left.len() {
        for second in first + 1..left.len() {
            let ours = left[first].cmp(&left[second]);
            let theirs = right[first].cmp(&right[second]);
            left_pairs += f64::from(u8::from(ours.is_ne()));
            right_pairs += f64::from(u8::from(theirs.is_ne()));
            if ours.is_ne() && theirs.is_ne() {
                agreeing += if ours == theirs { 1.0 } else { -1.0 };
            }
        }
    }
    let pairs: f64 = left_pairs * right_pairs;
    (pairs != 0.0).then(|| agreeing / pairs.sqrt())
}
